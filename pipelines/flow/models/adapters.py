"""LoRA adapters through peft, in and out of plain diffusers files."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError

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
    """An adapter folder (or .safetensors file) whose training is continued; its own rank and alpha are used."""

    def check(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"policy.lora.rank = {self.rank}; wanted at least 1.")
        if self.start_from is not None:
            check_folder(self.start_from)


def check_folder(path: str) -> None:
    """Raises ConfigError unless `path` is an adapter on disk; hub names pass."""
    folder = Path(path).expanduser()
    if folder.suffix == ".safetensors":
        if not folder.is_file():
            raise ConfigError(f"no adapter file {path}.")
    elif folder.exists():
        if not (folder / WEIGHT_NAME).is_file():
            raise ConfigError(f"{path} is not an adapter: it has no {WEIGHT_NAME}.")
    elif path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(f"adapter {path!r} is neither an existing folder nor a hub name of the form owner/name.")


def add(pipe: Any, lora: Lora, *, targets: tuple[str, ...], dtype: torch.dtype) -> None:
    """Adds a trainable adapter to the transformer; its weights are `dtype` (float32) whatever the model runs in."""
    from peft import LoraConfig, set_peft_model_state_dict

    network: nn.Module = pipe.transformer
    stored: dict[str, Tensor] = {}
    if lora.start_from is not None:
        stored = load_into(pipe, lora.start_from)
    else:
        network.add_adapter(
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                init_lora_weights="gaussian" if lora.init == "gaussian" else True,
                target_modules=list(lora.targets or targets),
            )
        )
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(True)
    if stored:  # loading rounded them to the dtype of the network
        set_peft_model_state_dict(network, stored)
    if not any("lora_" in name for name, _ in network.named_parameters()):
        raise ConfigError(
            f"the adapter matches no module of {type(network).__name__}; targets: {lora.targets or targets}."
        )


def load_into(pipe: Any, path: str) -> dict[str, Tensor]:
    """Loads a diffusers LoRA file into the transformer; gives the transformer's part of it as it is stored."""
    local = Path(path).expanduser()
    if local.is_file():
        where, name = str(local.parent), local.name
    else:
        where, name = str(local) if local.exists() else path, WEIGHT_NAME
    weights, metadata = pipe.lora_state_dict(where, weight_name=name, return_lora_metadata=True)
    pipe.transformer.load_lora_adapter(weights, metadata=metadata, prefix="transformer", adapter_name="default")
    return {k.removeprefix("transformer."): v for k, v in weights.items() if k.startswith("transformer.")}


def merge(pipe: Any, path: str) -> None:
    """Folds an adapter into the transformer's weights for good."""
    load_into(pipe, path)
    pipe.transformer.fuse_lora(safe_fusing=True)
    pipe.transformer.unload_lora()


def save_adapter(pipe: Any, folder: Path) -> None:
    """Writes the adapter with its rank and alpha, as `load_lora_weights` of a plain pipeline expects it."""
    from peft.utils import get_peft_model_state_dict

    network = pipe.transformer
    layers = {k: v.detach().float().cpu().contiguous() for k, v in get_peft_model_state_dict(network).items()}
    metadata = network.peft_config["default"].to_dict()
    pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)


def save_pipeline(pipe: Any, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes the whole pipeline, the transformer in `dtype`."""
    from diffusers.utils import logging

    network, level = pipe.transformer, logging.get_verbosity()
    if next(network.parameters()).dtype != dtype:
        pipe.register_modules(transformer=copy.deepcopy(network).to(dtype))
    logging.set_verbosity_error()  # it warns of every encoder that the checkpoint has always been without
    try:
        pipe.save_pretrained(folder)
    finally:
        logging.set_verbosity(level)
        pipe.register_modules(transformer=network)
