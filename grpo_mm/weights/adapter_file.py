"""LoRA adapters from elsewhere: a file or folder of any tool as named pairs of factors, nothing dropped.

A pair stands for weight += alpha / rank · B A. What is no such pair (DoRA, LoKr, whole modules, biases …) is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number, shown
from grpo_mm.weights.weight_files import (
    TORCH_FILES,
    name_some,
    parse_settings,
    read_settings,
    read_weight_file,
    refusing,
)

FILE_NAMES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
"""What diffusers and peft call the file in a folder, in the order they are looked for."""
CONFIG_NAME = "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"

WRAPPERS = re.compile(
    r"^(base_model\.model\.|module\.|_orig_mod\.)|(?<=\.)(_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.)"
)
FACTORS = (
    (re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])(\.(?!weight$|bias$)[^.]+)?(\.weight)?$"), {"A": "a", "B": "b"}),
    (re.compile(r"^(?P<module>.+)\.lora_(?P<factor>down|up)(\.weight)?$"), {"down": "a", "up": "b"}),
    (re.compile(r"^(?P<module>.+?)\.(lora\.|lora_linear_layer\.)?(?P<factor>down|up)\.weight$"), {"down": "a", "up": "b"}),
    (re.compile(r"^(?P<module>.+?)(\.lora|\.lora_linear_layer)?\.(?P<factor>alpha)$"), {"alpha": "alpha"}),
)  # fmt: skip
"""Names of factors: peft and diffusers; kohya and comfy; older diffusers and attention processors; alpha beside each."""
OTHERS = (
    (r"lora_magnitude_vector|dora_scale", "DoRA"),
    (r"lokr_", "LoKr"),
    (r"hada_", "LoHa"),
    (r"(^|\.)(oft|boft)_", "an orthogonal adapter"),
    (r"lora_embedding_", "an adapter of an embedding"),
    (r"^bundle_emb\.|^emb_params$|^string_to_param", "embeddings of own words"),
    (r"lora_mid|lora_A.*\.bias|lora_B.*\.bias|lora_(up|down)\.bias", "a factor beyond A and B"),
    (r"modules_to_save|original_module|\.diff(_b)?$", "a whole weight beside the factors"),
    (r"\.bias$", "a bias"),
)
KEPT_FROM_CONFIG = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
NO_MEANING = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "lora_alpha", "lora_dropout", "lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "loftq_config", "megatron_core", "peft_type", "peft_version", "r", "revision",
    "runtime_config", "task_type", "use_rslora", "alpha_pattern", "rank_pattern", *KEPT_FROM_CONFIG,
}  # fmt: skip
"""Settings of peft's LoraConfig that are read here, or that say nothing about what stored factors mean."""
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start an adapter that take its start off the base's weights."""


@dataclass(frozen=True, eq=False)
class Factors:
    """One pair of a file, under the name that the file gives its module (without the wrappers of peft and torch).

    Example: Factors("transformer.blocks.0.to_q", a [4, 64], b [64, 4], alpha=8.0), so a scale of 2.
    """

    module: str
    a: Tensor
    """[rank, in], in the dtype that it is stored in."""
    b: Tensor
    """[out, rank]"""
    alpha: float | None
    """None: the file says nothing, so the rank: a scale of 1."""


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """What a file says, before it is known which network it is for."""

    path: Path
    pairs: tuple[Factors, ...]
    configs: Mapping[str, Mapping[str, Any]]
    """Part of a pipeline ("" for the file as a whole) → its LoraConfig as stored."""

    @property
    def dropout(self) -> float:
        """The largest that it was trained with, as far as it says so."""
        return max((finite_number(c.get("lora_dropout")) or 0.0 for c in self.configs.values()), default=0.0)

    def targets(self, part: str) -> Any:
        """`target_modules` of its settings for a part; None where it does not say."""
        return (self.configs.get(part) or self.configs.get("") or {}).get("target_modules")


def check_adapter(path: str) -> None:
    """Raises ConfigError, before a model is loaded, unless `path` is an adapter that can be read, or a hub name."""
    local = Path(path).expanduser()
    if local.exists():
        read_adapter(path)
    elif path.startswith((".", "/", "~")) or path.count("/") != 1 or local.suffix in (".safetensors", *TORCH_FILES):
        raise ConfigError(f"adapter {path!r} is neither an existing folder nor a hub name of the form owner/name.")


def void_beside_start_from(lora: Any) -> list[str]:
    """What the settings of a new adapter count for beside one that is continued; with its ranks where the file is at hand.

    `lora`: settings with `start_from`, `rank`, `alpha`, `targets` and perhaps `init`. Raises ConfigError as `read_adapter` does.
    """
    names = [name for name in ("rank", "alpha", "init", "targets") if getattr(lora, name, None) is not None]
    given = ", ".join(f"{name} = {shown(getattr(lora, name))}" for name in names)
    ranks = ""
    if Path(lora.start_from).exists():
        found = sorted({int(pair.a.shape[0]) for pair in read_adapter(lora.start_from).pairs})
        ranks = f" (rank {', '.join(map(str, found))})"
    return [f"policy.lora: {given} have no effect: start_from goes on with an adapter that has its own{ranks}."]


def read_adapter(path: str) -> AdapterFile:
    """Reads a file, a folder or a hub name of the form owner/name.

    Raises:
        ConfigError: it cannot be read, or holds anything but whole pairs of finite factors.
    """
    file = _find(path)
    tensors, header = _read_shards(file)
    wrapped = any(name.startswith("base_model.model.") for name in tensors)
    configs = _configs(file, header, of_peft=wrapped or file.stem == "adapter_model")
    parts: dict[str, dict[str, Tensor]] = {}
    stray: dict[str, str] = {}
    for name, tensor in tensors.items():
        found = _factor(_unwrapped(name))
        if found is None:
            stray[name] = next((what for pattern, what in OTHERS if re.search(pattern, name)), "nothing that is known")
            continue
        module, factor = found
        if factor in parts.setdefault(module, {}):
            raise ConfigError(f"{file}: the {factor.upper()} of {shown(module)} stands twice in it.")
        parts[module][factor] = tensor
        _check_finite(tensor, name, file)
    if stray:
        kinds = ", ".join(sorted(set(stray.values())))
        raise ConfigError(
            f"{file}: {name_some(stray)} hold {kinds}; only pairs of low-rank factors (LoRA) of linear layers are taken."
        )
    if not parts:
        raise ConfigError(f"{file} is not an adapter: it holds no tensor.")
    half = [
        f"{module} (without {'A' if 'a' not in p else 'B'})" for module, p in parts.items() if not {"a", "b"} <= set(p)
    ]
    if half:
        raise ConfigError(f"{file} is not whole: factors are missing of {name_some(half)}.")
    if wrapped and not configs and not any("alpha" in p for p in parts.values()):
        raise ConfigError(
            f"{file} has peft's names, whose alpha stands in {CONFIG_NAME}; there is none beside it. Put both into one folder."
        )
    for part, config in configs.items():
        _check_config(config, f"{file}" + (f" ({part})" if part else ""))
    return AdapterFile(file, tuple(_pair(m, p, configs, file) for m, p in parts.items()), configs)


def _find(path: str) -> Path:
    local = Path(path).expanduser()
    if local.is_file():
        return local
    if not local.is_dir():
        return _from_hub(path)
    found = [local / name for name in FILE_NAMES if (local / name).is_file()]
    if not found:
        found = sorted(local.glob("*.safetensors"))
        if len(found) != 1 and len({_shards(file) for file in found}) != 1:
            raise ConfigError(
                f"{path} is not an adapter: it has no {FILE_NAMES[0]} or {FILE_NAMES[1]}"
                + (f", and {len(found)} other files of weights: name one." if found else ".")
            )
    return found[0]


def _read_shards(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file with those that it says it is one of.

    Raises:
        ConfigError: one of them is missing, or cannot be read.
    """
    tensors, header = {}, {}
    for shard in _shards(file):
        if not shard.is_file():
            raise ConfigError(f"{file} is one of several files of an adapter, and {shard.name} is missing beside it.")
        found, texts = read_weight_file(shard)
        if twice := found.keys() & tensors.keys():
            raise ConfigError(f"{shard}: {name_some(twice)} also stand in another file of the same adapter.")
        tensors |= found
        header |= texts
    return tensors, header


def _shards(file: Path) -> tuple[Path, ...]:
    """adapter_model-00001-of-00002.safetensors with its second; another file alone."""
    named = re.fullmatch(r"(.+-)(\d{5})(-of-(\d{5})\..+)", file.name)
    if named is None or not 1 < int(named[4]) <= 10_000:
        return (file,)
    return tuple(file.with_name(f"{named[1]}{i:05d}{named[3]}") for i in range(1, int(named[4]) + 1))


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with refusing(f"adapter {name!r}"):
        for file in FILE_NAMES:
            try:
                found = Path(hf_hub_download(name, file))
            except EntryNotFoundError:  # also where it is not in the cache and there is no network
                continue
            if file.startswith("adapter_model"):
                hf_hub_download(name, CONFIG_NAME)
            return found
    raise ConfigError(f"adapter {name!r}: none of {', '.join(FILE_NAMES)} was found there.")


def _unwrapped(name: str) -> str:
    while (bare := WRAPPERS.sub("", name)) != name:
        name = bare
    return name


def _factor(name: str) -> tuple[str, str] | None:
    """(module, "a", "b" or "alpha")"""
    if any(re.search(pattern, name) for pattern, _ in OTHERS):
        return None
    for pattern, kinds in FACTORS:
        if found := pattern.match(name):
            return found["module"], kinds[found["factor"]]
    return None


def _check_finite(tensor: Tensor, name: str, file: Path) -> None:
    if not tensor.is_floating_point():
        if tensor.numel() == 1 and not tensor.is_complex():  # an alpha as a whole number
            return
        raise ConfigError(f"{file}: {shown(name)} is stored as {tensor.dtype}; wanted floating-point numbers.")
    wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()
    if not torch.isfinite(wide).all():
        raise ConfigError(
            f"{file}: {shown(name)} holds {int((~torch.isfinite(wide)).sum())} values that are NaN or infinite."
        )


def _pair(module: str, parts: Mapping[str, Tensor], configs: Mapping[str, Mapping[str, Any]], file: Path) -> Factors:
    a, b = parts["a"], parts["b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ConfigError(
            f"{file}: the factors of {shown(module)} have the shapes A {list(a.shape)} and B {list(b.shape)}; wanted "
            "[rank, in] and [out, rank], as for a linear layer."
        )
    if not a.shape[0]:
        raise ConfigError(f"{file}: the factors of {shown(module)} have rank 0, so that the adapter would do nothing.")
    rank, said, part = a.shape[0], None, ""
    for name, config in configs.items():
        if name == "" or module.startswith(f"{name}."):
            said, part = config, name
    alpha = None if said is None else _said_alpha(said, module.removeprefix(f"{part}.") if part else module, rank, file)
    if "alpha" in parts:
        beside = finite_number(parts["alpha"].item()) if parts["alpha"].numel() == 1 else None
        if beside is None:
            raise ConfigError(f"{file}: the alpha of {shown(module)} is no single finite number.")
        if alpha is not None and not math.isclose(alpha, beside, rel_tol=1e-3):
            raise ConfigError(
                f"{file}: {shown(module)} has alpha {beside:g} beside its factors, and {alpha:g} in the settings."
            )
        alpha = beside
    if alpha == 0:
        raise ConfigError(f"{file}: the alpha of {shown(module)} is 0, so that the adapter would do nothing.")
    return Factors(module, a, b, alpha)


def _said_alpha(config: Mapping[str, Any], module: str, rank: int, file: Path) -> float | None:
    """What peft would make of its settings for a module; scaled so that alpha / rank is the scale."""
    from peft.utils.other import get_pattern_key

    values = {}
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        of = config.get(pattern) or {}
        if not isinstance(of, dict):
            raise ConfigError(f"{file}: {pattern} = {shown(of)} in its settings; wanted a number for each name.")
        value = of.get(get_pattern_key(list(of), module), config.get(key))
        values[key] = finite_number(value)
        if value is not None and values[key] is None:
            raise ConfigError(f"{file}: {key} = {shown(value)} in its settings; wanted a number.")
    if values["r"] is not None and values["r"] != rank:
        raise ConfigError(f"{file}: {shown(module)} has rank {rank}, and {values['r']:g} by the settings.")
    alpha = values["lora_alpha"]
    return alpha * math.sqrt(rank) if alpha is not None and config.get("use_rslora") else alpha


def _configs(file: Path, header: Mapping[str, str], *, of_peft: bool) -> dict[str, dict[str, Any]]:
    """Settings by part: of peft's folder, or in the header as diffusers writes them ("transformer.r": 4, …)."""
    beside = file.parent / CONFIG_NAME
    if METADATA_KEY in header:
        said = parse_settings(header[METADATA_KEY], where=f"{file}: {METADATA_KEY}")
    elif of_peft and beside.is_file():
        said = read_settings(beside)
    else:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for key, value in said.items():
        part, _, name = key.rpartition(".")
        found.setdefault(part, {})[name] = value
    return found


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for a setting that changes what the factors mean, and that is not done here."""
    from peft import LoraConfig

    if (config.get("peft_type") or "LORA") != "LORA":
        raise ConfigError(f"{where} is an adapter of the kind {shown(config['peft_type'])}; wanted LORA.")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        raise ConfigError(
            f"{where}: init_lora_weights = {shown(start)}, whose start was taken off the base's weights. Convert it to a plain "
            "LoRA where it was trained."
        )
    defaults = {
        field.name: field.default if field.default is not dataclasses.MISSING else None
        for field in dataclasses.fields(LoraConfig)
    }
    for key, value in config.items():
        if key not in NO_MEANING and value not in (None, False, "", "none", [], {}, defaults.get(key)):
            known = "is not done here" if key in defaults else "is not known to the installed peft"
            raise ConfigError(
                f"{where}: its setting {shown(key)} = {shown(value)} {known}, so its factors may mean another thing."
            )


def as_lora_config(config: Mapping[str, Any]) -> Any:
    """The part of stored settings that says which modules have an adapter, as peft's LoraConfig; None if it does not say."""
    from peft import LoraConfig

    kept = {key: config[key] for key in KEPT_FROM_CONFIG if config.get(key) is not None}
    if not kept.get("target_modules") or kept["target_modules"] == "all-linear":
        return None
    with refusing("its settings of modules " + shown(json.dumps(kept))):
        return LoraConfig(**kept)
