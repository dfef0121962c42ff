"""LoRA adapters through peft: in from files of any tool, out to plain diffusers files."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from grpo_mm.errors import ConfigError
from grpo_mm.outside import reason
from grpo_mm.pipelines.flow.models.adapter_parts import adapter_parts
from grpo_mm.weights.adapter_file import AdapterFile, check_adapter, read_adapter, void_beside_start_from
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
            check_adapter(self.start_from)


def add(pipe: Any, lora: Lora, *, targets: tuple[str, ...], dtype: torch.dtype) -> None:
    """Adds a trainable adapter to the transformer; its weights are `dtype` (float32) whatever the model runs in.

    Raises:
        ConfigError: `start_from` holds something that is not trained here, or `targets` match nothing.
    """
    from peft import LoraConfig

    network: nn.Module = pipe.transformer
    stored: dict[str, Pair] = {}
    settings = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "init_lora_weights": "gaussian" if lora.init == "gaussian" else True,
        "target_modules": list(lora.targets or targets),
    }
    if lora.start_from is not None:
        file = read_adapter(lora.start_from)
        stored = _continued(pipe, file, lora.start_from)
        settings = lora_settings(stored, network, said=file.targets("transformer"))
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


def _continued(pipe: Any, file: AdapterFile, path: str) -> dict[str, Pair]:
    """The pairs of an adapter whose training goes on."""
    found = place(file, adapter_parts(pipe))
    others = sorted(set(found) - {"transformer"})
    if others or file.dropout:
        raise ConfigError(
            f"policy.lora.start_from = {path}: it "
            + (f"has a part for {' and '.join(others)}" if others else "was trained with dropout")
            + ", which this policy does not train. Merge it instead: policy.merge_adapter."
        )
    return found["transformer"]


def merge(pipe: Any, path: str) -> Placed:
    """Folds an adapter into the weights of the transformer, and of the text encoders that it has a part for; gives what it
    has folded."""
    placed = place(read_adapter(path), adapter_parts(pipe))
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
    pipe.save_lora_weights(folder, **layers)


def save_adapter(pipe: Any, folder: Path) -> None:
    """Writes the adapter with its rank and alpha, as `load_lora_weights` of a plain pipeline expects it."""
    from peft.utils import get_peft_model_state_dict

    network = pipe.transformer
    layers = {k: v.detach().float().cpu().contiguous() for k, v in get_peft_model_state_dict(network).items()}
    metadata = network.peft_config["default"].to_dict()
    pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)


def save_merged(pipe: Any, folder: Path) -> None:
    """Writes the whole pipeline with the adapter in the transformer's weights; the one that is trained stays as it is.

    Sums are computed in float32 at least and rounded once, to the dtype of the weights.
    """
    merged = copy.deepcopy(pipe.transformer).cpu()
    layers = {name: m for name, m in merged.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A}
    pairs = {}
    for name, layer in layers.items():
        a, b = (factor["default"].weight.detach() for factor in (layer.lora_A, layer.lora_B))
        pairs[name] = Pair(a, b, alpha=layer.scaling["default"] * a.shape[0])
    merged.unload_lora()
    merge_into(merged, pairs, where="the adapter")
    _save_with(pipe, merged, folder)


def save_pipeline(pipe: Any, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes the whole pipeline, the transformer in `dtype`."""
    network = pipe.transformer
    same = next(network.parameters()).dtype == dtype
    _save_with(pipe, network if same else copy.deepcopy(network).to(dtype), folder)


def _save_with(pipe: Any, transformer: nn.Module, folder: Path) -> None:
    """Writes the pipeline with another transformer in the place of its own."""
    from diffusers.utils import logging

    network, level = pipe.transformer, logging.get_verbosity()
    pipe.register_modules(transformer=transformer)
    logging.set_verbosity_error()  # it warns of every encoder that the checkpoint has always been without
    try:
        pipe.save_pretrained(folder)
    finally:
        logging.set_verbosity(level)
        pipe.register_modules(transformer=network)
