"""LoRA adapters through peft: in from files of any tool, out to plain diffusers files."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from grpo_mm.errors import ConfigError
from grpo_mm.outside import reason
from grpo_mm.pipelines.flow.models.adapter_parts import adapter_parts, transformer_part
from grpo_mm.pipelines.flow.models.networks import NETWORKS, SECOND, networks_of
from grpo_mm.weights.adapter_file import FILE_NAMES, AdapterFile, check_adapter, read_adapter, void_beside_start_from
from grpo_mm.weights.adapter_places import Pair, Placed, fill, lora_settings, merge_into, place

WEIGHT_NAME = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Lora:
    """The Flow-GRPO defaults: rank 32, alpha 64, Gaussian init, all attention projections of both streams."""

    rank: int = 32
    alpha: float = 64.0
    init: Literal["gaussian", "kaiming"] = "gaussian"
    targets: tuple[str, ...] | None = None
    """Module name endings; None: the family's attention projections."""
    start_from: str | None = None
    """An adapter folder, file or hub name whose training is continued; its own layers, ranks and alphas are used."""

    def without_effect(self) -> list[str]:
        """Beside an adapter that is continued, the settings of a new one."""
        return [] if self.start_from is None else void_beside_start_from(self)

    def check(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"policy.lora.rank = {self.rank}; wanted at least 1.")
        if self.start_from is not None:
            for file in files_of(self.start_from).values():
                check_adapter(file)


def files_of(path: str) -> dict[str, str]:
    """Network of a pipeline → the file or folder of its adapter. Plain pipelines load one file for one network, so that of a second
    lies in a folder of its own, with names as if it were the first's."""
    second = Path(path).expanduser() / SECOND
    if not second.is_dir():
        return {"transformer": path}
    alone = not any((second.parent / name).is_file() for name in FILE_NAMES)
    return ({} if alone else {"transformer": path}) | {SECOND: str(second)}


def add(
    pipe: Any, lora: Lora, *, targets: tuple[str, ...], dtype: torch.dtype, trained: Sequence[str] = NETWORKS[:1]
) -> None:
    """Adds a trainable adapter to each trained network; its weights are `dtype` (float32) whatever the model runs in.

    Raises:
        ConfigError: `start_from` holds something that is not trained here, or `targets` match nothing.
    """
    stored, said = ({}, {}) if lora.start_from is None else _continued(pipe, lora.start_from, trained)
    for name in trained:
        _add_to(getattr(pipe, name), lora, stored.get(name, {}), said.get(name), targets=targets, dtype=dtype)


def _add_to(
    network: nn.Module, lora: Lora, stored: dict[str, Pair], said: Any, *, targets: tuple[str, ...], dtype: torch.dtype
) -> None:
    from peft import LoraConfig

    settings = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "init_lora_weights": "gaussian" if lora.init == "gaussian" else True,
        "target_modules": list(lora.targets or targets),
    }
    if stored:
        settings = lora_settings(stored, network, said=said)
    try:
        network.add_adapter(LoraConfig(**settings))
    except ValueError as error:
        raise ConfigError(
            f"the adapter matches no module of {type(network).__name__}; targets: {lora.targets or targets}. "
            f"({reason(error)})"
        ) from error
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(True)
    if stored:
        fill(network, stored)


def _continued(pipe: Any, path: str, trained: Sequence[str]) -> tuple[Placed, dict[str, Any]]:
    """(the pairs of an adapter whose training goes on, what its settings say of its targets), by network."""
    files, found = _placed(pipe, path)
    others = sorted(set(found) - set(trained))
    if others or any(file.dropout for file in files.values()):
        raise ConfigError(
            f"policy.lora.start_from = {path}: it "
            + (f"has a part for {' and '.join(others)}" if others else "was trained with dropout")
            + ", which this policy does not train. Merge it instead: policy.merge_adapter."
        )
    lacking = [name for name in trained if name not in found]
    if lacking:
        raise ConfigError(
            f"policy.lora.start_from = {path}: it has nothing for {' and '.join(lacking)}. Train the other network alone: "
            f"policy.model.trained=[{', '.join(found)}]."
        )
    return found, {name: file.targets("transformer") for name, file in files.items()}


def _placed(pipe: Any, path: str) -> tuple[dict[str, AdapterFile], Placed]:
    """(the files of an adapter by network, their pairs at the layers of the pipeline's parts)"""
    files = {name: read_adapter(file) for name, file in files_of(path).items()}
    found: Placed = {}
    for name, file in files.items():
        if name == SECOND and name not in networks_of(pipe):
            raise ConfigError(f"{path} has an adapter for {SECOND}, and the checkpoint has one network.")
        parts = adapter_parts(pipe) if name != SECOND else [transformer_part(pipe, SECOND)]
        for part, pairs in place(file, parts).items():
            if found.setdefault(part, pairs) is not pairs:
                raise ConfigError(f"{path}: two of its files are for {part}.")
    return files, found


def merge(pipe: Any, path: str) -> Placed:
    """Folds an adapter into the weights of the transformer, and of the text encoders that it has a part for; gives what it
    has folded."""
    _, placed = _placed(pipe, path)
    for part, pairs in placed.items():
        merge_into(getattr(pipe, part), pairs, where=f"policy.merge_adapter = {path}")
    return placed


def save_placed(pipe: Any, placed: Placed, folder: Path) -> None:
    """Writes what was merged in the names of plain diffusers, whatever tool's names it came in."""
    layers = {
        f"{part}_lora_layers": {
            f"{name}.lora_{factor}.weight": value.contiguous()
            for name, pair in ((name, pair.at_scale_one()) for name, pair in pairs.items())
            for factor, value in (("A", pair.a), ("B", pair.b))
        }
        for part, pairs in placed.items()
    }
    second = layers.pop(f"{SECOND}_lora_layers", None)
    if layers:
        pipe.save_lora_weights(folder, **layers)
    if second:
        pipe.save_lora_weights(folder / SECOND, transformer_lora_layers=second)


def save_adapter(pipe: Any, folder: Path) -> None:
    """Writes the adapter with its rank and alpha, as `load_lora_weights` of a plain pipeline expects it; see `files_of`."""
    from peft.utils import get_peft_model_state_dict

    for name, network in adapted(pipe).items():
        layers = {k: v.detach().float().cpu().contiguous() for k, v in get_peft_model_state_dict(network).items()}
        metadata = network.peft_config["default"].to_dict()
        place = folder / SECOND if name == SECOND else folder
        pipe.save_lora_weights(place, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)


def adapted(pipe: Any) -> dict[str, nn.Module]:
    """The networks that have an adapter."""
    return {name: one for name, one in networks_of(pipe).items() if getattr(one, "peft_config", None)}


def load_plain(pipe: Any, folder: Path) -> None:
    """Loads what `save_adapter` wrote into a plain pipeline, by its own `load_lora_weights`."""
    for name, file in files_of(str(folder)).items():
        pipe.load_lora_weights(file, **({"load_into_transformer_2": True} if name == SECOND else {}))


def save_merged(pipe: Any, folder: Path) -> None:
    """Writes the whole pipeline with the adapter in its networks' weights; those that are trained stay as they are.

    Sums are computed in float32 at least and rounded once, to the dtype of the weights.
    """
    _save_with(pipe, {name: _merged(network) for name, network in adapted(pipe).items()}, folder)


def _merged(network: nn.Module) -> nn.Module:
    merged = copy.deepcopy(network).cpu()
    layers = {name: m for name, m in merged.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A}
    pairs = {}
    for name, layer in layers.items():
        a, b = (factor["default"].weight.detach() for factor in (layer.lora_A, layer.lora_B))
        pairs[name] = Pair(a, b, alpha=layer.scaling["default"] * a.shape[0])
    merged.unload_lora()
    merge_into(merged, pairs, where="the adapter")
    return merged


def save_pipeline(pipe: Any, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes the whole pipeline, its networks in `dtype`."""
    networks = networks_of(pipe)
    same = {name: next(one.parameters()).dtype == dtype for name, one in networks.items()}
    _save_with(pipe, {n: one if same[n] else copy.deepcopy(one).to(dtype) for n, one in networks.items()}, folder)


def _save_with(pipe: Any, networks: Mapping[str, nn.Module], folder: Path) -> None:
    """Writes the pipeline with other networks in the place of its own."""
    from diffusers.utils import logging

    own, level = {name: getattr(pipe, name) for name in networks}, logging.get_verbosity()
    pipe.register_modules(**networks)
    logging.set_verbosity_error()  # it warns of every encoder that the checkpoint has always been without
    try:
        pipe.save_pretrained(folder)
    finally:
        logging.set_verbosity(level)
        pipe.register_modules(**own)
