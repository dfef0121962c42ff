"""A flow checkpoint against its plain pipeline, from the text to the adapter that a run would leave."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.findings import Finding, row
from grpo_mm.pipelines.flow.conforming.network_rows import (
    SHARES,
    drawn_of,
    looked_at,
    measure,
    network_rows,
    of_network,
    said_of_measure,
    velocity_at,
)
from grpo_mm.pipelines.flow.conforming.picture_rows import decoding_rows, drawing_row, grid_row
from grpo_mm.pipelines.flow.conforming.pictured import AsGiven, example_pictures
from grpo_mm.pipelines.flow.conforming.plain import TEXTS, Drawing, Plain, drawn, plain_pipeline
from grpo_mm.pipelines.flow.conforming.replay_rows import replay_rows
from grpo_mm.pipelines.flow.models.adapters import Lora, load_plain
from grpo_mm.pipelines.flow.models.family import Size, resolve
from grpo_mm.pipelines.flow.models.networks import networks_of
from grpo_mm.pipelines.flow.models.picture_sizes import PictureSizes, sizes_on_disk
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig
from grpo_mm.pipelines.flow.settings import DTYPES
from grpo_mm.processes.rng import stream

TOKENS, TOKENS_OF_CLIPS = (8, 12), (2, 3)
"""Image tokens along the height and the width of what is drawn."""
LATENT_FRAMES = 3
GUIDANCE, TEXT_LENGTH = 4.0, 128
LORA = Lora(rank=3, alpha=5.0)
MOVED = 0.05
"""Standard deviation of what is added to the factors of an adapter, so that it does something."""


def conform(family: Any, *, dtype: str, device: torch.device) -> Iterator[Finding]:
    """One finding after the other. Plain pipeline and policy are loaded in turn, never both at once.

    Raises:
        ConfigError: the checkpoint cannot be loaded here.
    """
    size = _size(family, sizes_on_disk(resolve(family.path), revision=family.revision))
    *frames, height, width = size
    # Where the plain pipeline says another thing of a text beside a longer one, both are the same.
    texts = TEXTS if getattr(family, "alike_in_a_batch", True) else TEXTS[-1:] * 2
    length, pictures = getattr(family, "text_tokens", TEXT_LENGTH), example_pictures(family, len(texts))
    how = Drawing(size, GUIDANCE, length, texts=texts, pictures=pictures)
    config = FlowPolicyConfig(
        model=family, lora=LORA, dtype=dtype, guidance=how.guidance, height=height, width=width, text_length=how.text_length,
        media=AsGiven() if any(how.pictures) else None, **dict(zip(("frames",), frames)),
    )  # fmt: skip
    config.check()
    folder = resolve(family.path)
    plain = _drawn(family, folder, how, dtype, device)
    torch.manual_seed(0)  # the start of an adapter
    policy = config.load(device)
    yield said_of_measure(policy.dtype)
    yield from network_rows(policy, plain, how)
    yield grid_row(policy, plain, how)
    yield drawing_row(policy, plain, how)
    yield from decoding_rows(policy, plain, how)
    yield from replay_rows(policy, how)
    with tempfile.TemporaryDirectory() as place:
        yield from _adapter_rows(policy, config, plain, how, Path(place), device)


def _size(family: Any, sizes: PictureSizes) -> Size:
    """Height and width in pixels: sides that differ, of no more tokens than the network has positions for; of a few frames."""
    clips = getattr(family, "frames", None) is not None
    high, wide = TOKENS_OF_CLIPS if clips else TOKENS
    most = wide if sizes.most_px is None else min(wide, sizes.most_px // sizes.token_px)
    sides = min(high, max(1, most - 1)) * sizes.token_px, most * sizes.token_px
    return (1 + (LATENT_FRAMES - 1) * sizes.latent_frames, *sides) if clips else sides


def _drawn(
    family: Any,
    folder: str,
    how: Drawing,
    dtype: str,
    device: torch.device,
    *,
    adapter: Path | None = None,
    along: Plain | None = None,
) -> Plain:
    pipe = plain_pipeline(family, folder, DTYPES[dtype], device)
    if adapter is not None:
        load_plain(pipe, adapter)
    try:
        return drawn(pipe, family, how, sources=adapter is None, along=along)
    finally:
        del pipe
        gc.collect()


def _adapter_rows(
    policy: FlowPolicy, config: FlowPolicyConfig, plain: Plain, how: Drawing, place: Path, device: torch.device
) -> Iterator[Finding]:
    """An adapter that does something is saved, loaded in the plain library, and merged; velocities at the latents of the plain drawing,
    of each network."""
    bound, steps, apart_of = SHARES[policy.dtype], looked_at(plain), measure(policy.dtype)

    def velocities(of: FlowPolicy) -> dict[str, Tensor]:
        return {name: drawn_of(of, velocity_at(of, plain, how, step)[0]) for name, step in steps.items()}

    def each(
        name: str, here: Mapping[str, Tensor], there: Mapping[str, Tensor], *said: Any, **settings: Any
    ) -> Iterator[Finding]:
        for which in steps:
            yield row(
                f"adapter: {name}{of_network(which, plain)}", apart_of(here[which], there[which]), *said, **settings
            )

    wanted, trained = set(), set()
    for name, network in networks_of(policy.pipe).items():
        named = [(f"{name}.{layer}", module) for layer, module in network.named_modules()]
        wanted |= {n for n, _ in named if name in policy.trained and n.endswith(policy.family.lora_targets)}
        trained |= {n for n, module in named if hasattr(module, "lora_A")}
    wrong = sorted(trained ^ wanted)
    words = f"of {len(wanted)} that the family names, those without one, and others with one"
    yield row("adapter: layers", float(len(wrong)), 0, words, ", ".join(wrong[:3]))
    before = {name: drawn_of(policy, plain.heard.steps[step].velocity) for name, step in steps.items()}
    yield from each("a new one changes", velocities(policy), before, bound, "the velocity, which should stay")
    with torch.no_grad():
        for name, p in policy.trainable.items():
            p.add_(MOVED * torch.randn(p.shape, generator=stream(0, "conform", name)).to(p))
    moved = velocities(policy)
    for which in steps:
        name = f"adapter: what it changes{of_network(which, plain)}"
        yield Finding(name, apart_of(moved[which], before[which]), 1e-4, "the velocity, as a share", at_least=True)
    policy.save(place)
    family, dtype = policy.family, config.dtype
    policy.network = policy.pipe = None  # the next load may need the room
    gc.collect()
    loaded = _drawn(family, resolve(family.path), how, dtype, device, adapter=place, along=plain)
    there = {name: drawn_of(policy, loaded.heard.steps[step].velocity) for name, step in steps.items()}
    cause = "other layers, another scale, or names it does not know; on the wrong network"
    yield from each("saved, in the plain library", moved, there, bound, "velocity at the same latents", cause)
    merged = replace(config, lora=LORA, merge_adapter=str(place)).load(device)
    words = "against the adapter beside the weights"
    yield from each("merged", velocities(merged), moved, max(bound, 1e-3), words)
