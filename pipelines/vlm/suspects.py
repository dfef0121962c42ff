"""Mistakes that engines of answers are known to make, each as a change of the trainer: the one that explains a difference is its cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.models.positions import authors_rope_index
from grpo_mm.pipelines.vlm.policy import VlmPolicy
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.prompting.record import TextRecord
from grpo_mm.types import Prompt

SNAPSHOTS = ("ema", "sampling", "ref")


@dataclass(frozen=True)
class Suspect:
    """A mistake, and the trainer as it would be if it made it."""

    cause: str
    under: Callable[[], AbstractContextManager[None]] = nullcontext
    """In which the trainer makes the mistake."""
    of: Callable[[TextRecord], TextRecord] = lambda record: record
    """What it would be asked."""


def suspects(
    policy: VlmPolicy, prompts: Mapping[str, Prompt], before: Mapping[str, Tensor] | None = None
) -> Iterator[Suspect]:
    """In the order in which they are tried.

    Args:
        prompts: by the id of their context.
        before: the trained weights of before they were changed, where they were.
    """
    yield from _of_weights(policy, before)
    yield from _of_the_distribution(policy)
    yield from _of_the_prompt(policy, prompts)
    other = torch.bfloat16 if policy.network.precision == torch.float32 else torch.float32
    words = f"it computes in {str(other).removeprefix('torch.')}, the trainer does not"
    yield Suspect(words, lambda: having(policy.network, autocast=other))


def _of_weights(policy: VlmPolicy, before: Mapping[str, Tensor] | None) -> Iterator[Suspect]:
    if before is not None:
        stale = "its weights, or what it keeps of prompts it has read with them, are those of before the last change"
        yield Suspect(stale, lambda: weights(policy, before))
    for name in SNAPSHOTS:
        if name in policy.snapshots:
            words = f"it samples with the weights {name!r} instead of the present ones"
            yield Suspect(words, lambda name=name: policy.snapshots.use(name))
    if policy.config.lora is not None:
        lora = policy.config.lora
        scales = {
            0.0: "is not applied",
            lora.rank / lora.alpha: "acts without its alpha / rank",
            2.0: "acts twice",
            0.5: "acts half",
        }
        for factor, words in scales.items():
            yield Suspect(f"the adapter {words}", lambda factor=factor: adapter_scaled(policy, factor))


def _of_the_distribution(policy: VlmPolicy) -> Iterator[Suspect]:
    network, own = policy.network, policy.network.distribution
    if own.temperature != 1:
        for temperature, words in (
            (1.0, "its log-probabilities are of before the temperature"),
            (own.temperature**2, "the temperature acts twice"),
        ):
            other = replace(own, temperature=temperature)
            yield Suspect(words, lambda other=other: having(network, distribution=other))
    if bool(own.forbidden_V.any()):
        free = replace(own, forbidden_V=torch.zeros_like(own.forbidden_V))
        words = "tokens that are never drawn (placeholders of media) have a share in its distribution"
        yield Suspect(words, lambda: having(network, distribution=free))


def _of_the_prompt(policy: VlmPolicy, prompts: Mapping[str, Prompt]) -> Iterator[Suspect]:
    if policy.loaded.family.leaves_positions_open:
        words = "text goes on after a video by another rule of positions (policy.video_positions)"
        yield Suspect(words, of=lambda record: _behind(record, lambda c: _by_the_other_rule(policy, c)))
    encode = policy.encode.encoder
    if encode.chat.system is not None:
        bare = replace(encode, chat=replace(encode.chat, system=None))
        words = "the prompt has lost its system turn"
        yield Suspect(words, of=lambda record: _behind(record, lambda c: bare(prompts[c.prompt_id])))


def _behind(record: TextRecord, other: Callable[[Context], Context]) -> TextRecord:
    """The same answers behind other contexts."""
    return replace(record, contexts=tuple(c if c.failure else other(c) for c in record.contexts))


def _by_the_other_rule(policy: VlmPolicy, context: Context) -> Context:
    inputs = {"input_ids": context.input_ids_L[None], **context.inputs}
    if policy.config.video_positions == "authors":
        position_3NL, _ = type(policy.model.model).get_rope_index(policy.model.model, **_read(policy, inputs))
    else:
        position_3NL, _ = authors_rope_index(policy.model.config, **_read(policy, inputs))
    return replace(context, position_3L=position_3NL[:, 0])


def _read(policy: VlmPolicy, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the rule of positions reads."""
    names = ["input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw"]
    names += ["second_per_grid_ts"] * (policy.loaded.family.time == "seconds_per_grid")
    return {name: inputs[name] for name in names if name in inputs}


@contextmanager
def having(thing: Any, **values: Any) -> Iterator[None]:
    """Other attributes of a thing, for a while."""
    before = {name: getattr(thing, name) for name in values}
    for name, value in values.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)


@contextmanager
def weights(policy: VlmPolicy, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other trained weights, for a while."""
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    put(policy, values)
    try:
        yield
    finally:
        put(policy, before)


@torch.no_grad()
def put(policy: VlmPolicy, values: Mapping[str, Tensor]) -> None:
    """Writes the trained weights in place."""
    for name, p in policy.trainable.items():
        p.copy_(values[name])
    policy.snapshots.changed()


@contextmanager
def adapter_scaled(policy: VlmPolicy, factor: float) -> Iterator[None]:
    """The adapter at another strength, for a while."""
    layers = [m for m in policy.model.modules() if isinstance(getattr(m, "scaling", None), dict)]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update({name: factor * scale for name, scale in layer.scaling.items()})
    try:
        yield
    finally:
        for layer, scale in zip(layers, before):
            layer.scaling.update(scale)
