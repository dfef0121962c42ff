"""GMPO: the geometric mean of a row's clipped ratios, which one outlying action cannot carry away."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate
from grpo_mm.objectives.clipped_ratio import MAX_LOG_RATIO, ratio_stats
from grpo_mm.objectives.logprob_term import LogprobTerm
from grpo_mm.objectives.ratio import log_ratio, row_mean
from grpo_mm.types import View


def gmpo(
    logprobs_NA: Tensor,
    old_logprobs_NA: Tensor,
    advantages_NA: Tensor,
    mask_NA: Tensor,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> Tensor:
    """Loss -A·exp(mean of the row's clipped log-ratios), carried by each action of the row; 0 where masked.

    Args:
        advantages_NA: one value per row is meant; where they differ, the row's A is their mean (as in a library; uncertain).
        clip_low, clip_high: in log space and one-sided: where A > 0 a log-ratio counts as clip_high at most, where A < 0 as
            -clip_low at least. GSPO clips the mean instead.

    Source: arXiv:2507.20673, grade [C], from re-implementations; range (e^-0.4, e^0.4).
    """
    found = log_ratio(logprobs_NA, old_logprobs_NA, mask_NA)
    advantages_NA = advantages_NA.to(found.dtype)
    clipped_NA = torch.where(advantages_NA > 0, found.clamp(max=clip_high), found.clamp(min=-clip_low))
    ratio_N = row_mean(clipped_NA, mask_NA).clamp(max=MAX_LOG_RATIO).exp()
    return -(row_mean(advantages_NA, mask_NA) * ratio_N)[..., None] * mask_NA


@dataclass(frozen=True)
class Gmpo(LogprobTerm):
    """`gmpo` as a term of the objective: the mean over rows."""

    clip_low: float = 0.4
    """Smallest log-ratio that counts, as -clip_low, for negative advantages."""
    clip_high: float = 0.4
    """Largest log-ratio that counts, for positive advantages."""
    aggregate: Aggregate = "row"
    """What the loss is a mean over: all tokens or actions, rows (row, row_sum), or a constant length."""
    weight: float = 1.0
    """Of this term in the loss."""

    couples = "row"

    def __post_init__(self) -> None:
        if not (0 <= self.clip_low <= MAX_LOG_RATIO and 0 <= self.clip_high <= MAX_LOG_RATIO):
            raise ValueError(
                f"clip_low = {self.clip_low} and clip_high = {self.clip_high}, in log space; wanted 0 to {MAX_LOG_RATIO:g}."
            )

    def loss(self, logprobs_NA: Tensor, old_logprobs_NA: Tensor, advantages_NA: Tensor, mask_NA: Tensor) -> Tensor:
        clip = dict(clip_low=self.clip_low, clip_high=self.clip_high)
        return gmpo(logprobs_NA, old_logprobs_NA, advantages_NA, mask_NA, **clip)

    def stats(self, log_ratio_NA: Tensor, view: View) -> dict[str, Tensor]:
        edges = dict(clip_low=-math.expm1(-self.clip_low), clip_high=math.expm1(self.clip_high))
        return ratio_stats(log_ratio_NA, view.advantage, **edges)
