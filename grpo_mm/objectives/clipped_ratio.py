"""The clipped importance-ratio surrogate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate, aggregate_weight
from grpo_mm.types import Couples, Term, View

MAX_LOG_RATIO = 20.0
"""Beyond every clip range; above 88 the ratio overflows in float32 and its gradient is NaN."""

StepWeight = Literal["none", "inverse_dt", "std", "relative_std"]


def clipped_ratio(
    logprobs_NA: Tensor,
    old_logprobs_NA: Tensor,
    advantages_NA: Tensor,
    mask_NA: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """Loss per action: -min(r·A, clip(r, 1 - clip_low, 1 + clip_high)·A), with r = exp(logprob - old); 0 where masked.

    Args:
        dual_clip: c > 1; for A < 0 the loss is at most -c·A (arXiv:1912.09729, eq. 5). None: off.

    Returns:
        [N, A] (or the shape of the inputs).

    Source: arXiv:1707.06347, eq. 7; asymmetric range arXiv:2503.14476. Log-probabilities of denoising steps are *means*
    over latent elements (flow kernels), which is why their clip range is 1e-3 to 1e-6.
    """
    log_ratio = torch.where(mask_NA.bool(), logprobs_NA - old_logprobs_NA, 0.0)
    return surrogate(log_ratio, advantages_NA, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip) * mask_NA


def surrogate(
    log_ratio: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """The clipped loss of a log-ratio of any definition (action, row mean, RatioNorm)."""
    advantage = advantage.to(log_ratio.dtype)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)
    return loss


def ratio_stats(log_ratio: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """What is logged of every ratio: its mean, how often the clip is active, and the k2 estimate of the step's KL."""
    with torch.no_grad():
        ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
        active = ((ratio > 1 + clip_high) & (advantage > 0)) | ((ratio < 1 - clip_low) & (advantage < 0))
        return {"ratio": ratio, "clip_frac": active.to(ratio.dtype), "approx_kl": 0.5 * log_ratio**2}


def step_weight(kind: StepWeight, values: Mapping[str, Tensor]) -> Tensor | float:
    """none: 1. inverse_dt: 1/δ (GRPO-Guard's reweighting). std: the step's noise. relative_std: that over its mean over the
    row's trained steps, TempFlow-GRPO's noise-aware weight (arXiv:2508.04324, eq. 9)."""
    if kind == "none":
        return 1.0
    return 1 / values["dt"] if kind == "inverse_dt" else values[kind]


def step_weight_needs(kind: StepWeight) -> frozenset[str]:
    """The values that `step_weight` reads."""
    return frozenset({"none": (), "inverse_dt": ("dt",)}.get(kind, (kind,)))


@dataclass(frozen=True)
class ClippedRatio:
    """PPO's clipped surrogate over single actions, or over whole rows (GSPO, arXiv:2507.18071, eq. 5–7)."""

    clip_low: float = 1e-4
    clip_high: float = 1e-4
    dual_clip: float | None = None
    ratio: Literal["action", "row"] = "action"
    """row: the geometric mean of the row's ratios is clipped; one ratio for all its actions."""
    aggregate: Aggregate = "token"
    step_weight: StepWeight = "none"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.clip_low < 0 or self.clip_high < 0:
            raise ValueError(f"clip_low = {self.clip_low} and clip_high = {self.clip_high}; wanted 0 or more.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logprobs"}) | step_weight_needs(self.step_weight)

    @property
    def couples(self) -> Couples:
        return self.ratio

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        log_ratio = torch.where(view.mask.bool(), values["logprobs"] - view.old_logprobs, 0.0)
        if self.ratio == "row":
            log_ratio = (log_ratio.sum(-1, keepdim=True) / view.row_actions).expand_as(log_ratio)
        clip = dict(clip_low=self.clip_low, clip_high=self.clip_high)
        loss = surrogate(log_ratio, view.advantage, dual_clip=self.dual_clip, **clip)
        weight, denominator = aggregate_weight(view, self.aggregate)
        return Term(
            name="policy",
            loss=self.weight * step_weight(self.step_weight, values) * loss,
            weight=weight,
            denominator=denominator,
            stats=ratio_stats(log_ratio, view.advantage, **clip),
        )
