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
from grpo_mm.pipelines.flow.conforming.network_rows import SHARES, measure, network_rows, said_of_measure, velocity_at
from grpo_mm.pipelines.flow.conforming.picture_rows import decoding_rows, drawing_row, grid_row
from grpo_mm.pipelines.flow.conforming.pictured import AsGiven, example_pictures
from grpo_mm.pipelines.flow.conforming.plain import TEXTS, Drawing, Plain, drawn, plain_pipeline
from grpo_mm.pipelines.flow.conforming.replay_rows import replay_rows
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.family import resolve
from grpo_mm.pipelines.flow.models.picture_sizes import PictureSizes, sizes_on_disk
from grpo_mm.pipelines.flow.policy import DTYPES, FlowPolicy, FlowPolicyConfig
from grpo_mm.processes.rng import stream

TOKENS = (8, 12)
"""Image tokens along the height and the width of what is drawn."""
GUIDANCE, TEXT_LENGTH = 4.0, 128
LORA = Lora(rank=3, alpha=5.0)
MOVED = 0.05
"""Standard deviation of what is added to the factors of an adapter, so that it does something."""


def conform(family: Any, *, dtype: str, device: torch.device) -> Iterator[Finding]:
    """One finding after the other. Plain pipeline and policy are loaded in turn, never both at once.

    Raises:
        ConfigError: the checkpoint cannot be loaded here.
    """
    size = _size(sizes_on_disk(resolve(family.path), revision=family.revision))
    # Where the plain pipeline says another thing of a text beside a longer one, both are the same.
    texts = TEXTS if getattr(family, "alike_in_a_batch", True) else TEXTS[-1:] * 2
    how = Drawing(size, GUIDANCE, TEXT_LENGTH, texts=texts, pictures=example_pictures(family, len(texts)))
    config = FlowPolicyConfig(
        model=family, lora=LORA, dtype=dtype, guidance=how.guidance, height=how.size[0], width=how.size[1],
        text_length=how.text_length, media=AsGiven() if any(how.pictures) else None,
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


def _size(sizes: PictureSizes) -> tuple[int, int]:
    """Height and width in pixels: sides that differ, of no more tokens than the network has positions for."""
    most = TOKENS[1] if sizes.most_px is None else min(TOKENS[1], sizes.most_px // sizes.token_px)
    return min(TOKENS[0], max(1, most - 1)) * sizes.token_px, most * sizes.token_px


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
    bound, before, apart_of = SHARES[policy.dtype], plain.heard.steps[0].velocity, measure(policy.dtype)
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
