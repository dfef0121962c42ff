"""The clipped importance-ratio surrogate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate, aggregate_weight
from grpo_mm.objectives.ratio import RatioOf, log_ratio
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
    ratio_cap: float | None = None,
    ratio: RatioOf = "action",
    unit_NA: Tensor | None = None,
) -> Tensor:
    """Loss per action: -min(r·A, clip(r, 1 - clip_low, 1 + clip_high)·A), with r = exp(logprob - old); 0 where masked.

    Args:
        dual_clip: c > 1; for A < 0 the loss is at most -c·A (arXiv:1912.09729, eq. 5). None: off.
        ratio_cap: δ > 1 + clip_high; min(r, δ) takes the place of the r that is not clipped, which bounds the loss where
            A < 0 (arXiv:2505.07291, INTELLECT-2). None: off.
        ratio: what r is taken over, see `log_ratio`; `unit_NA` goes with unit.

    Returns:
        [N, A] (or the shape of the inputs).

    Source: arXiv:1707.06347, eq. 7; asymmetric range arXiv:2503.14476. Log-probabilities of denoising steps are *means*
    over latent elements (flow kernels), which is why their clip range is 1e-3 to 1e-6.
    """
    found = log_ratio(logprobs_NA, old_logprobs_NA, mask_NA, ratio=ratio, unit_NA=unit_NA)
    clip = dict(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, ratio_cap=ratio_cap)
    return surrogate(found, advantages_NA, **clip) * mask_NA


def surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Tensor:
    """The clipped loss of a log-ratio of any definition (action, row mean, RatioNorm)."""
    advantage = advantage.to(log_ratio.dtype)
    ratio = log_ratio.clamp(max=max_log_ratio).exp()
    unclipped = ratio if ratio_cap is None else ratio.clamp(max=ratio_cap)
    loss = torch.maximum(-advantage * unclipped, -advantage * ratio.clamp(1 - clip_low, 1 + clip_high))
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
    """PPO's clipped surrogate over single actions, units of a row (Rank-GRPO), or whole rows (GSPO, RLOO)."""

    clip_low: float = 1e-4
    clip_high: float = 1e-4
    dual_clip: float | None = None
    ratio_cap: float | None = None
    """δ of INTELLECT-2, above 1 + clip_high: bounds the ratio that is not clipped."""
    ratio: RatioOf = "action"
    """row: one geometric mean for all actions of a row; row_token: its value, with a gradient per action; unit: one per unit
    of the row; product: the likelihood ratio of the row, for policies of tokens."""
    unit: str = "unit"
    """For ratio = unit: the column with the unit of each action, declared by the rollout or made by a stage."""
    max_log_ratio: float = MAX_LOG_RATIO
    """Log-ratios above it count as it, against overflow; GSPO's libraries take 10."""
    aggregate: Aggregate = "token"
    step_weight: StepWeight = "none"
    """What the loss of a denoising step is multiplied by: one over its length (inverse_dt), its noise (std), that noise
    relative to the others (relative_std), or 1 (none)."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.clip_low < 0 or self.clip_high < 0:
            raise ValueError(f"clip_low = {self.clip_low} and clip_high = {self.clip_high}; wanted 0 or more.")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(
                f"dual_clip = {self.dual_clip}; wanted above 1: a bound in units of the advantage, 3 or 10."
            )
        if not 0 < self.max_log_ratio <= 88:
            raise ValueError(
                f"max_log_ratio = {self.max_log_ratio}; wanted above 0 and at most 88, where float32 ends."
            )
        if self.ratio_cap is not None and self.ratio_cap <= 1 + self.clip_high:
            raise ValueError(f"ratio_cap = {self.ratio_cap}; wanted above 1 + clip_high = {1 + self.clip_high}.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logprobs", self._logprobs}) | step_weight_needs(self.step_weight)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.unit} if self.ratio == "unit" else ())

    @property
    def couples(self) -> Couples:
        return "action" if self.ratio == "action" else "row"

    @property
    def one_advantage_per_row(self) -> bool:
        """Whether a row has one ratio, with which advantages of single actions would be mixed."""
        return self.ratio in ("row", "product")

    @property
    def _logprobs(self) -> str:
        # Only the log-probability of a token is one whose sum is that of the row: a flow policy has means over latents.
        return "token_logprobs" if self.ratio == "product" else "logprobs"

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        now, unit = values[self._logprobs], view.columns[self.unit] if self.ratio == "unit" else None
        found = log_ratio(now, view.old_logprobs, view.mask, ratio=self.ratio, unit_NA=unit)
        clip = dict(clip_low=self.clip_low, clip_high=self.clip_high)
        bounds = dict(dual_clip=self.dual_clip, ratio_cap=self.ratio_cap, max_log_ratio=self.max_log_ratio)
        loss = surrogate(found, view.advantage, **clip, **bounds)
        weight, denominator = aggregate_weight(view, self.aggregate)
        return Term(
            name="policy",
            loss=self.weight * step_weight(self.step_weight, values) * loss,
            weight=weight,
            denominator=denominator,
            stats=ratio_stats(found, view.advantage, **clip),
        )
