"""A vision-language checkpoint against its plain model and processor, from the tokens to the adapter that a run would leave."""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.findings import Finding, row
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.models.families import family_of, resolve
from grpo_mm.pipelines.vlm.plain_model import (
    LENGTH,
    left_out,
    plain_answer,
    plain_inputs,
    plain_logprobs,
    prompts_of_all_kinds,
)
from grpo_mm.pipelines.vlm.policy import VlmPolicy, VlmPolicyConfig
from grpo_mm.processes.rng import stream
from grpo_mm.types import Prompt, Rollout, Rows

GROUP = 2
"""Answers of each prompt."""
MOVED = 0.05
"""Standard deviation of what is added to the factors of an adapter."""
APART = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Largest difference of a log-probability."""
LORA = Lora(rank=3, alpha=5.0)


@dataclass(frozen=True)
class Ours:
    """What the policy said of the prompts."""

    contexts: Sequence[Any]
    rollout: Rollout
    trainer_NA: Tensor
    greedy: Sequence[str]
    moved_NA: Tensor
    """By the trainer once the adapter does something."""
    forbidden: Sequence[int]
    layers: Sequence[str]


def conform(path: str, *, dtype: str, device: torch.device) -> Iterator[Finding]:
    """One finding after the other. Policy and plain model are loaded in turn, never both at once.

    Raises:
        ConfigError: the checkpoint cannot be loaded here.
    """
    # Where text goes on after a video is a setting of the policy; here it is the library's rule, as the plain model has it.
    config = VlmPolicyConfig(path=path, lora=LORA, dtype=dtype, video_positions="library", encode_workers=0)
    config.check()
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        ours = _said(config, device, Path(place))
        gc.collect()
        yield from _against_plain(ours, config, device, Path(place))
        gc.collect()
        merged = replace(config, merge_adapter=place).load(device)
        apart = _gap(_trainer(merged, ours.rollout), ours.moved_NA, ours.rollout.mask_NA)
        yield row("adapter: merged", apart, APART[getattr(torch, dtype)], "against the adapter beside the weights")


def _said(config: VlmPolicyConfig, device: torch.device, place: Path) -> Ours:
    policy = config.load(device)
    prompts = prompts_of_all_kinds(policy.loaded.family)
    rollout, _ = VlmEngine(max_new_tokens=LENGTH).sample(
        policy, _rows(prompts, GROUP), step=0, seed=0, needs=frozenset({"logprobs"})
    )
    greedy = VlmEngine(max_new_tokens=LENGTH).render(policy, _rows(prompts, 1), seed=0)
    trainer_NA = _trainer(policy, rollout)
    with torch.no_grad():
        for name, p in policy.trainable.items():
            p.add_(MOVED * torch.randn(p.shape, generator=stream(0, "conform", name)).to(p))
    moved_NA = _trainer(policy, rollout)
    policy.save(place)
    contexts = [policy.encode(prompt) for prompt in prompts]
    layers = sorted({name.split(".lora_")[0] for name in policy.trainable})
    return Ours(contexts, rollout, trainer_NA, list(greedy), moved_NA, policy.loaded.forbidden, layers)


def _rows(prompts: Sequence[Prompt], group_size: int) -> Rows:
    number = len(prompts)
    prompt_N = torch.arange(number).repeat_interleave(group_size)
    return Rows(tuple(prompts), prompt_N, torch.arange(group_size).repeat(number), group_size)


def _trainer(policy: VlmPolicy, rollout: Rollout) -> Tensor:
    """Log-probabilities of the answers by the training forward, [N, A]."""
    found_NA = torch.zeros(rollout.behaviour_NA.shape)
    plan = policy.plan(rollout, rollout.mask_NA)
    for index, values in policy.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=False):
        found_NA.view(-1)[index.cpu()] = values["logprobs"].float().cpu()
    return found_NA


def _against_plain(ours: Ours, config: VlmPolicyConfig, device: torch.device, adapter: Path) -> Iterator[Finding]:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, bound = resolve(config.path), APART[getattr(torch, config.dtype)]
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, config.dtype)).to(device).eval()
    family = family_of(model.config.model_type, path=config.path)
    plain = {p.id: plain_inputs(processor, p, time=family.time) for p in prompts_of_all_kinds(family)}
    yield from _input_rows(ours, list(plain.values()), left_out(family))
    yield _position_row(ours, list(plain.values()), model)
    mask_NA = ours.rollout.mask_NA.cpu()
    found_NA = plain_logprobs(model, plain, ours.rollout.record, ours.forbidden)
    words = "trainer against plain forward"
    cause = "another template, other pixels, positions, visual features, forbidden tokens or precision"
    yield row("log-probability of answers", _gap(found_NA, ours.trainer_NA, mask_NA), bound, words, cause)
    apart = _gap(ours.rollout.behaviour_NA.cpu(), ours.trainer_NA, mask_NA)
    yield row("log-probability, rollout against replay", apart, bound, f"{int(mask_NA.sum())} tokens")
    other = [
        name for (name, inputs), text in zip(plain.items(), ours.greedy)
        if plain_answer(model, processor, inputs, ours.forbidden) != text
    ]  # fmt: skip
    words = f"of {len(plain)} prompts, answers that are not those of `generate` without the forbidden tokens"
    yield row("greedy answers", float(len(other)), 0, words, ", ".join(other))
    yield from _adapter_rows(PeftModel.from_pretrained(model, adapter), plain, ours, bound)


def _adapter_rows(wrapped: Any, plain: Mapping[str, Any], ours: Ours, bound: float) -> Iterator[Finding]:
    inside = {
        n.split(".lora_")[0].removeprefix("base_model.model.") for n, _ in wrapped.named_modules() if ".lora_A." in n
    }
    here = {name.removeprefix("base_model.model.") for name in ours.layers}
    wrong = sorted(inside ^ here) + sorted(name for name in here if "language_model" not in name)
    words = f"of {len(here)} layers, those that only one side has or that are not of the language model"
    yield row("adapter: layers", float(len(wrong)), 0, words, ", ".join(wrong[:3]))
    mask_NA = ours.rollout.mask_NA.cpu()
    changed = _gap(ours.moved_NA, ours.trainer_NA, mask_NA)
    yield Finding("adapter: what it changes", changed, 1e-4, "log-probabilities", at_least=True)
    apart = _gap(plain_logprobs(wrapped, plain, ours.rollout.record, ours.forbidden), ours.moved_NA, mask_NA)
    yield row(
        "adapter: saved, in the plain library", apart, bound, "log-probabilities", "other layers, or another scale"
    )


def _input_rows(ours: Ours, plain: Sequence[Mapping[str, Any]], without: Sequence[str]) -> Iterator[Finding]:
    wrong = sum(c.input_ids_L.tolist() != p["input_ids"][0].tolist() for c, p in zip(ours.contexts, plain))
    cause = "another template, system turn, truncation, or another resize of the media"
    words = f"{len(plain)} prompts, token by token"
    if without:
        words += f"; left out, as the library has no way to show it: {', '.join(without)}"
    yield row("tokens of prompts", float(wrong), 0, words, cause)
    names = dict.fromkeys(k for p in plain for k in p if k not in ("input_ids", "attention_mask", "num_patches"))
    for name in names:
        apart = 0.0
        for context, inputs in zip(ours.contexts, plain):
            here, there = context.inputs.get(name), inputs.get(name)
            if name == "mm_token_type_ids" and there is None:
                continue
            if (here is None) != (there is None) or (here is not None and here.shape != there.shape):
                apart = math.inf
            elif here is not None:
                apart = max(apart, float((here.double() - there.double()).abs().max()))
        label = "pixels" if name.startswith("pixel_values") else "processor"
        yield row(
            f"{label}: {name}", apart, 0, "largest difference", "frames or pictures in another order, scale or size"
        )


def _position_row(ours: Ours, plain: Sequence[Mapping[str, Any]], model: Any) -> Finding:
    """Rotary positions of prompts, as the plain model finds them by itself; one that has no rule counts tokens."""
    apart = 0.0
    for context, inputs in zip(ours.contexts, plain):
        if not hasattr(model.model, "get_rope_index"):
            counted = torch.arange(inputs["input_ids"].shape[1])
            apart = max(apart, float((counted - context.position_3L).abs().max()))
            continue
        rest = {
            k: v
            for k, v in inputs.items()
            if k.endswith("grid_thw") or k in ("mm_token_type_ids", "second_per_grid_ts")
        }
        rest.setdefault("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
        try:
            found, _ = model.model.get_rope_index(input_ids=inputs["input_ids"], **rest)
        except TypeError:  # a family without seconds
            rest.pop("second_per_grid_ts", None)
            found, _ = model.model.get_rope_index(input_ids=inputs["input_ids"], **rest)
        apart = max(apart, float((found[:, 0].cpu() - context.position_3L).abs().max()))
    return row(
        "positions", apart, 0, "of prompts, by time, height and width", "another rule of positions, or another clock"
    )


def _gap(one_NA: Tensor, other_NA: Tensor, mask_NA: Tensor) -> float:
    return float((one_NA - other_NA).abs().where(mask_NA.cpu(), 0).max())
