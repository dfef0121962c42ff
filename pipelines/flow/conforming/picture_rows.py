"""Noise levels, a whole drawing without noise, and the way from latents to pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.findings import Finding, row
from grpo_mm.pipelines.flow.conforming.heard import kept
from grpo_mm.pipelines.flow.conforming.network_rows import SHARES, apart_of, drawn_of, measure, prompts_of
from grpo_mm.pipelines.flow.conforming.plain import STEPS, Drawing, Plain, read, spelled
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.own_schedule import grid_of, own_schedule
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.rollout.rows import plan_rows
from grpo_mm.types import Clips, Rows

WHOLE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float64: 1e-5}
"""Of a whole drawing, in which rounding adds up."""
LEVELS = {torch.float32: 1.0, torch.bfloat16: 4.0, torch.float64: 1.0}
"""Of 255, the largest difference of a pixel; in bfloat16, where the plain decoder computes in it too, the root mean square."""


def rows_of(how: Drawing, group_size: int) -> Rows:
    return plan_rows(prompts_of(how), group_size=group_size, parts=1)[0]


def grid_row(policy: FlowPolicy, plain: Plain, how: Drawing) -> Finding:
    tokens = policy.family.image_tokens(policy.pipe, *how.size)
    try:
        ours = own_schedule(policy.pipe, **grid_of(policy.family)).exact(STEPS, image_tokens=tokens)
    except ConfigError as error:
        return Finding("σ", float("nan"), 0, f"it has no grid that can be followed: {error}", asked=False)
    words = f"here {_listed(ours)}, plain {_listed(plain.sigma_S1)}"
    return row("σ", apart_of(ours, plain.sigma_S1), 1e-5, words, "shift, spacing, or how they depend on the size")


def _listed(sigma_S1: Tensor) -> str:
    return " ".join(f"{float(s):.4g}" for s in sigma_S1)


@dataclass(frozen=True)
class _From(FlowEngine):
    """An engine whose evaluation starts from given latents."""

    start: Any = None

    def evaluation_noise(self, policy: FlowPolicy, rows: Rows, *, seed: int) -> Tensor:
        return self.start


def drawing_row(policy: FlowPolicy, plain: Plain, how: Drawing) -> Finding:
    start = plain.heard.steps[0].before.to(policy.device, policy.math_dtype)
    latents = _From(eval_steps=STEPS, start=start).latents(policy, rows_of(how, 1), seed=0)
    latents, there = (drawn_of(policy, v) for v in (latents.cpu(), plain.heard.steps[-1].after))
    apart, same = measure(policy.dtype)(latents, there), torch.equal(latents, there.to(latents.dtype))
    words = f"{STEPS} steps without noise from the same latents; {'bit for bit' if same else 'not bit for bit'}"
    return row("whole drawing", apart, WHOLE[policy.dtype], words, "σ, the sign of the velocity, or precision")


def decoding_rows(policy: FlowPolicy, plain: Plain, how: Drawing) -> Iterator[Finding]:
    """Which number of a latent each number before the decoder comes from, then its value, then the picture."""
    latents = plain.heard.steps[-1].after
    if plain.sources is not None:
        ours = read([_before_decoder(policy, probe[:1], how)[0] for probe in spelled(latents.float())])
        alike = plain.sources.squeeze().shape == ours.squeeze().shape
        there = plain.sources.view(ours.shape) if alike else None
        moved = float("inf") if there is None else float((ours != there).sum())
        words = f"of {ours.numel()} numbers before the decoder, how many come from elsewhere in a latent"
        yield row(
            "packing of latents",
            moved,
            0,
            words,
            "packed in another order, frames in another order, or height taken for width",
        )
    here = _before_decoder(policy, latents, how)
    apart, cause = (
        measure(policy.dtype)(here, plain.heard.decoded[0]),
        "scale, shift, mean or deviation of the autoencoder forgotten",
    )
    yield row("latents before the decoder", apart, SHARES[policy.dtype], "of the same last latents", cause)
    picture = policy.decode(latents.to(policy.device, policy.math_dtype), size=how.size)
    if isinstance(picture, Clips) and None not in picture:
        picture = torch.stack([clip.frames_FCHW for clip in picture])
    if not isinstance(picture, Tensor):
        yield Finding("picture", float("inf"), 0, "it has NaN or infinities")
        return
    gap, cause = picture.float() - plain.picture * 255, "another decoder, or range of pixels"
    apart = float(gap.square().mean().sqrt() if policy.dtype == torch.bfloat16 else gap.abs().max())
    yield row("picture, levels of 255", apart, LEVELS[policy.dtype], "of the same last latents", cause)


@torch.no_grad()
def _before_decoder(policy: FlowPolicy, latents: Tensor, how: Drawing) -> Tensor:
    """What our family gives to the decoder, [n, ...]."""
    vae, taken = policy.pipe.vae, []
    decode = vae.decode

    def given(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        taken.append(kept(latents).float())
        return decode(latents, *args, **kwargs)

    vae.decode = given
    try:
        policy.family.decode(policy.pipe, latents.to(policy.device, policy.math_dtype), size=how.size)
    finally:
        vae.decode = decode
    return taken[0]
