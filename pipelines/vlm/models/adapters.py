"""LoRA adapters through peft: in from files of any version, out as folders that load with plain transformers and peft."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.models.families import FAMILIES, adapter_targets
from grpo_mm.pipelines.vlm.models.family import LINEAR
from grpo_mm.weights.adapter_file import AdapterFile, check_adapter, read_adapter, void_beside_start_from
from grpo_mm.weights.adapter_places import Pair, Part, Place, check_untied, fill, lora_settings, merge_into, place

STACKED = (".experts.gate_up_proj", ".experts.down_proj")
"""Weights of all experts of a layer in one tensor, [experts, out, in]."""
LANGUAGE, VISUAL = "model.language_model.", "model.visual."
"""Where a model keeps its language model, and its vision tower."""


@dataclass(frozen=True)
class Lora:
    """An adapter on linear layers of the language model; the vision tower never gets one. Without dropout, which would
    make the log-probabilities of sampling and training differ."""

    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = LINEAR
    """Names of linear layers within a language layer. All of these, the default, stand for all that a family has: those of linear
    attention and fused ones as well. Experts in stacked tensors have none."""
    experts: bool = False
    """Also on the experts of a mixture, whose weights stand in stacked tensors: factors of this rank for each expert. The change of all
    experts of a layer is made whole in each forward, as peft does it."""
    start_from: str | None = None
    """An adapter folder, file or hub name whose training is continued; its own layers, ranks and alphas are used."""

    def without_effect(self) -> list[str]:
        """Beside an adapter that is continued, the settings of a new one."""
        return [] if self.start_from is None else void_beside_start_from(self)

    def check(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(f"policy.lora: rank = {self.rank}, alpha = {self.alpha}; wanted at least 1, and above 0.")
        more = sorted({name for family in FAMILIES.values() for name in family.more_linear})
        if not self.targets or not set(self.targets) <= {*LINEAR, *more}:
            also = f" (some families: {', '.join(more)})" if more else ""
            raise ConfigError(
                f"policy.lora.targets = {list(self.targets)}; wanted some of {', '.join(LINEAR)}{also}: the linear layers of "
                "the language model."
            )
        if self.start_from is not None and self.experts:
            raise ConfigError(
                "policy.lora: experts = true is for a new adapter; one that is continued (start_from) has none on experts here. Leave one "
                "of them out."
            )
        if self.start_from is not None:
            check_adapter(self.start_from)


def add(model: Any, lora: Lora) -> Any:
    """The model with a trainable adapter in its layers, as a `PeftModel`; everything else is frozen.

    The adapter's weights are float32 whatever the model runs in.

    Raises:
        ConfigError: `start_from` holds something that is not trained here.
    """
    from peft import LoraConfig, get_peft_model

    stored: dict[str, Pair] = {}
    settings = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": adapter_targets(_targets(model, lora)),
        **({"target_parameters": _expert_weights(model)} if lora.experts else {}),
    }
    if lora.start_from is not None:
        file = read_adapter(lora.start_from)
        stored = _continued(model, file, lora.start_from)
        settings = lora_settings(stored, model, said=file.targets("model"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name of yesterday
        wrapped = get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    if stored:
        fill(model, stored)
    assert any(parameter.requires_grad for parameter in wrapped.parameters()), "the adapter matches no layer"
    return wrapped


def _targets(model: Any, lora: Lora) -> tuple[str, ...]:
    family = FAMILIES[model.config.model_type]
    if set(LINEAR) <= set(lora.targets):
        return tuple(name for name in lora.targets if name not in family.not_adapted) + family.more_linear
    wrong = [name for name in lora.targets if name in family.not_adapted]
    if wrong:
        raise ConfigError(
            f"policy.lora.targets = {list(lora.targets)}: peft takes {', '.join(wrong)} of a {family.model_type} model for its "
            "experts in stacked tensors, which are not adapted here. Leave them out."
        )
    return lora.targets


def _expert_weights(model: Any) -> list[str]:
    """Ends of the names of the stacked weights of experts, as peft wants them."""
    family = FAMILIES[model.config.model_type]
    found = [name for name, _ in model.named_parameters() if name.startswith(LANGUAGE) and name.endswith(STACKED)]
    if not family.experts or not found:
        raise ConfigError(f"policy.lora.experts: a {family.model_type} model has no experts in stacked tensors.")
    return [f"mlp{name}" for name in STACKED]


def _continued(model: Any, file: AdapterFile, path: str) -> dict[str, Pair]:
    """The pairs of an adapter whose training goes on."""
    found = place(file, [_part(model)])["model"]
    tower = [name for name in found if name.startswith(VISUAL)]
    if tower or file.dropout:
        raise ConfigError(
            f"policy.lora.start_from = {path}: its adapter "
            + (f"changes the vision tower ({tower[0]})" if tower else "was trained with dropout")
            + ", which this policy does not train. Merge it instead: policy.merge_adapter."
        )
    check_untied(model, found, where=f"policy.lora.start_from = {path}")
    return found


def merge(model: Any, path: str) -> dict[str, Pair]:
    """Folds an adapter into the weights of the model for good; gives what it has folded."""
    pairs = place(read_adapter(path), [_part(model)])["model"]
    merge_into(model, pairs, where=f"policy.merge_adapter = {path}")
    return pairs


def save_pairs(model: Any, pairs: Mapping[str, Pair], folder: Path) -> None:
    """Writes what was merged as `PeftModel.from_pretrained` expects it, whatever tool's names it came in."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    plain = {name: pair.at_scale_one() for name, pair in pairs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    LoraConfig(**lora_settings(plain, model), task_type="CAUSAL_LM", inference_mode=True).save_pretrained(folder)
    tensors = {
        f"base_model.model.{name}.lora_{factor}.weight": value.contiguous()
        for name, pair in plain.items()
        for factor, value in (("A", pair.a), ("B", pair.b))
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _part(model: Any) -> Part:
    """The model, its layers under the names of today's transformers, of older versions and of its language model alone."""
    older: dict[str, Place] = {}
    for name, _ in model.named_modules():
        for today, then in (
            (LANGUAGE, ("model.", "language_model.model.", "language_model.", "model.language_model.model.", "")),
            (VISUAL, ("visual.",)),
            ("lm_head", ("language_model.lm_head", "model.lm_head")),
        ):
            if name.startswith(today):
                older |= {before + name.removeprefix(today): Place((name,)) for before in then}
    return Part("model", model, ("", "model."), aliases=older)


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
