"""A flow checkpoint against its plain pipeline, from the text to the adapter that a run would leave."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grpo_mm.findings import Finding, row
from grpo_mm.pipelines.flow.conforming.network_rows import SHARES, apart_of, network_rows, velocity_at
from grpo_mm.pipelines.flow.conforming.picture_rows import decoding_rows, drawing_row, grid_row
from grpo_mm.pipelines.flow.conforming.plain import Drawing, Plain, drawn, plain_pipeline
from grpo_mm.pipelines.flow.conforming.replay_rows import replay_rows
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.family import Size, resolve
from grpo_mm.pipelines.flow.models.picture_sizes import PictureSizes, sizes_on_disk
from grpo_mm.pipelines.flow.policy import DTYPES, FlowPolicy, FlowPolicyConfig
from grpo_mm.processes.rng import stream

TOKENS, TOKENS_OF_CLIPS = (8, 12), (4, 6)
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
    how = Drawing(_size(family, sizes_on_disk(resolve(family.path), revision=family.revision)), GUIDANCE, TEXT_LENGTH)
    *frames, height, width = how.size
    config = FlowPolicyConfig(
        model=family, lora=LORA, dtype=dtype, guidance=how.guidance, height=height, width=width,
        text_length=how.text_length, **dict(zip(("frames",), frames)),
    )  # fmt: skip
    config.check()
    folder = resolve(family.path)
    plain = _drawn(family, folder, how, dtype, device)
    torch.manual_seed(0)  # the start of an adapter
    policy = config.load(device)
    yield from network_rows(policy, plain, how)
    yield grid_row(policy, plain, how)
    yield drawing_row(policy, plain)
    yield from decoding_rows(policy, plain, how)
    yield from replay_rows(policy)
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
    family: Any, folder: str, how: Drawing, dtype: str, device: torch.device, *, adapter: Path | None = None
) -> Plain:
    pipe = plain_pipeline(family, folder, DTYPES[dtype], device)
    if adapter is not None:
        pipe.load_lora_weights(adapter)
    try:
        return drawn(pipe, family, how, sources=adapter is None)
    finally:
        del pipe
        gc.collect()


def _adapter_rows(
    policy: FlowPolicy, config: FlowPolicyConfig, plain: Plain, how: Drawing, place: Path, device: torch.device
) -> Iterator[Finding]:
    """An adapter that does something is saved, loaded in the plain library, and merged; velocities at the first latents."""
    bound, before = SHARES[policy.dtype], plain.heard.steps[0].velocity
    trained = {name.split(".lora_")[0] for name in policy.trainable}
    wanted = {name for name, _ in policy.network.named_modules() if name.endswith(policy.family.lora_targets)}
    wrong = sorted(trained ^ wanted)
    words = f"of {len(wanted)} that the family names, those without one, and others with one"
    yield row("adapter: layers", float(len(wrong)), 0, words, ", ".join(wrong[:3]))
    start, _ = velocity_at(policy, plain, how, step=0)
    yield row("adapter: a new one changes", apart_of(start, before), bound, "the velocity, which should stay")
    with torch.no_grad():
        for name, p in policy.trainable.items():
            p.add_(MOVED * torch.randn(p.shape, generator=stream(0, "conform", name)).to(p))
    moved, _ = velocity_at(policy, plain, how, step=0)
    yield Finding("adapter: what it changes", apart_of(moved, before), 1e-4, "the velocity, as a share", at_least=True)
    policy.save(place)
    policy.network = policy.pipe = None  # the next load may need the room
    gc.collect()
    loaded = _drawn(policy.family, resolve(policy.family.path), how, config.dtype, device, adapter=place)
    apart = apart_of(moved, loaded.heard.steps[0].velocity)
    cause = "other layers, another scale, or names it does not know"
    yield row("adapter: saved, in the plain library", apart, bound, "velocity at the first latents", cause)
    merged = replace(config, lora=LORA, merge_adapter=str(place)).load(device)
    apart = apart_of(velocity_at(merged, plain, how, step=0)[0], moved)
    yield row("adapter: merged", apart, max(bound, 1e-3), "against the adapter beside the weights")
