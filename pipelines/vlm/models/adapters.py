"""LoRA adapters through peft, and the folders that a run leaves: they load with plain transformers and peft."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.models.families import LINEAR, adapter_targets

CONFIG_NAME = "adapter_config.json"


@dataclass(frozen=True)
class Lora:
    """An adapter on linear layers of the language model; the vision tower never gets one. Without dropout, which would
    make the log-probabilities of sampling and training differ."""

    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = LINEAR
    """Names of linear layers within a language layer."""
    start_from: str | None = None
    """An adapter folder whose training is continued; its own rank, alpha and targets are used."""

    def check(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(f"policy.lora: rank = {self.rank}, alpha = {self.alpha}; wanted at least 1, and above 0.")
        unknown = sorted(set(self.targets) - set(LINEAR))
        if unknown or not self.targets:
            raise ConfigError(
                f"policy.lora.targets = {list(self.targets)}; wanted some of {', '.join(LINEAR)}: the linear layers of the "
                "language model."
            )
        if self.start_from is not None:
            check_folder(self.start_from)


def check_folder(path: str) -> None:
    """Raises ConfigError unless `path` is an adapter on disk; hub names pass."""
    folder = Path(path).expanduser()
    if folder.exists():
        if not (folder / CONFIG_NAME).is_file():
            raise ConfigError(f"{path} is not an adapter: it has no {CONFIG_NAME}.")
    elif path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(f"adapter {path!r} is neither an existing folder nor a hub name of the form owner/name.")


def add(model: Any, lora: Lora) -> Any:
    """The model with a trainable adapter in its layers, as a `PeftModel`; everything else is frozen.

    The adapter's weights are float32 whatever the model runs in.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if lora.start_from is not None:
        wrapped = PeftModel.from_pretrained(model, str(Path(lora.start_from).expanduser()), is_trainable=True)
    else:
        settings = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=adapter_targets(lora.targets),
            task_type="CAUSAL_LM",
        )  # fmt: skip
        wrapped = get_peft_model(model, settings)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    _check_adapter(wrapped, lora)
    return wrapped


def _check_adapter(wrapped: Any, lora: Lora) -> None:
    names = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    stray = [name for name in names if ".visual." in name]
    if stray or wrapped.peft_config["default"].lora_dropout:
        raise ConfigError(
            f"policy.lora.start_from = {lora.start_from}: its adapter "
            + (f"changes the vision tower ({stray[0]})" if stray else "was trained with dropout")
            + ", which this policy does not train. Merge it instead: policy.merge_adapter."
        )
    assert names, "the adapter matches no layer"


def merge(model: Any, path: str) -> Any:
    """The model with an adapter folded into its weights for good."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(Path(path).expanduser())).merge_and_unload(safe_merge=True)


def save_merged(wrapped: Any, processor: Any, folder: Path) -> None:
    """Writes an ordinary checkpoint with the adapter in its weights; the model that is trained stays as it is."""
    merged = copy.deepcopy(wrapped).cpu().merge_and_unload(safe_merge=True)
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_adapter(wrapped: Any, folder: Path) -> None:
    """Writes the adapter, as `PeftModel.from_pretrained` expects it."""
    wrapped.save_pretrained(folder, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card


def save_model(model: Any, processor: Any, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes model and processor for `from_pretrained`, the weights in `dtype`."""
    if model.dtype != dtype:
        model = copy.deepcopy(model).cpu().to(dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
