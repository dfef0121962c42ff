"""CISPO: REINFORCE with a bounded importance weight, so that no action loses its gradient to a clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate
from grpo_mm.objectives.clipped_ratio import ratio_stats
from grpo_mm.objectives.logprob_term import LogprobTerm
from grpo_mm.objectives.ratio import log_ratio
from grpo_mm.types import View


def cispo(
    logprobs_NA: Tensor,
    old_logprobs_NA: Tensor,
    advantages_NA: Tensor,
    mask_NA: Tensor,
    *,
    min_ratio: float = 0.0,
    max_ratio: float = 5.0,
) -> Tensor:
    """Loss per action: -w·A·logprob with w = clip(r, min_ratio, max_ratio) without gradient; 0 where masked.

    Args:
        min_ratio, max_ratio: bounds of the ratio itself, not distances from 1.

    Source: arXiv:2506.13585 (MiniMax-M1), grade [C]: only an upper bound is in use there. Libraries differ:
    one bounds both sides with PPO's range, which is min_ratio = 1 - ε, max_ratio = 1 + ε here.
    """
    mask = mask_NA.bool()
    with torch.no_grad():
        weight_NA = log_ratio(logprobs_NA, old_logprobs_NA, mask_NA).exp().clamp(min_ratio, max_ratio)
    return -weight_NA * advantages_NA.to(weight_NA.dtype) * torch.where(mask, logprobs_NA, 0.0) * mask_NA


@dataclass(frozen=True)
class Cispo(LogprobTerm):
    """`cispo` as a term of the objective; the mean is over all trained actions of the update."""

    max_ratio: float = 5.0
    """The largest weight of an action: a bound of the ratio itself."""
    min_ratio: float = 0.0
    """The smallest one."""
    aggregate: Aggregate = "token"
    """What the loss is a mean over: all tokens or actions, rows (row, row_sum), or a constant length."""
    weight: float = 1.0
    """Of this term in the loss."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio <= 1 <= self.max_ratio:
            raise ValueError(f"min_ratio = {self.min_ratio}, max_ratio = {self.max_ratio}; wanted 0 … 1 … above.")

    def loss(self, logprobs_NA: Tensor, old_logprobs_NA: Tensor, advantages_NA: Tensor, mask_NA: Tensor) -> Tensor:
        bounds = dict(min_ratio=self.min_ratio, max_ratio=self.max_ratio)
        return cispo(logprobs_NA, old_logprobs_NA, advantages_NA, mask_NA, **bounds)

    def stats(self, log_ratio_NA: Tensor, view: View) -> dict[str, Tensor]:
        return ratio_stats(log_ratio_NA, view.advantage, clip_low=1 - self.min_ratio, clip_high=self.max_ratio - 1)
