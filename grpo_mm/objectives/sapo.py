"""SAPO: a soft gate in place of a clip, so that the gradient of an action fades with its distance from on-policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate
from grpo_mm.objectives.clipped_ratio import MAX_LOG_RATIO
from grpo_mm.objectives.logprob_term import LogprobTerm
from grpo_mm.objectives.ratio import log_ratio


def sapo(
    logprobs_NA: Tensor,
    old_logprobs_NA: Tensor,
    advantages_NA: Tensor,
    mask_NA: Tensor,
    *,
    temperature_up: float = 1.0,
    temperature_down: float = 1.05,
) -> Tensor:
    """Loss per action: -A·(4/τ)·σ(τ·(r - 1)); 0 where masked. At r = 1 its gradient is A·∇logprob for every τ.

    Args:
        temperature_up: τ where A > 0; temperature_down: τ elsewhere. The larger, the sooner the gradient fades.

    Source: arXiv:2511.20347 (SAPO), grade [C]. One library documents it without the factor 4/τ, which scales the gradient.
    """
    found = log_ratio(logprobs_NA, old_logprobs_NA, mask_NA)
    advantages_NA = advantages_NA.to(found.dtype)
    temperature_NA = torch.full_like(found, temperature_down).masked_fill(advantages_NA > 0, temperature_up)
    distance_NA = found.clamp(max=MAX_LOG_RATIO).exp() - 1
    return -advantages_NA * 4 / temperature_NA * torch.sigmoid(temperature_NA * distance_NA) * mask_NA


@dataclass(frozen=True)
class Sapo(LogprobTerm):
    """`sapo` as a term of the objective."""

    temperature_up: float = 1.0
    """τ for positive advantages: the larger, the sooner the gradient fades as the ratio leaves 1."""
    temperature_down: float = 1.05
    """τ for the others."""
    aggregate: Aggregate = "row"
    """What the loss is a mean over: all tokens or actions, rows (row, row_sum), or a constant length."""
    weight: float = 1.0
    """Of this term in the loss."""

    def __post_init__(self) -> None:
        if self.temperature_up <= 0 or self.temperature_down <= 0:
            raise ValueError(
                f"temperature_up = {self.temperature_up}, temperature_down = {self.temperature_down}; wanted above 0."
            )

    def loss(self, logprobs_NA: Tensor, old_logprobs_NA: Tensor, advantages_NA: Tensor, mask_NA: Tensor) -> Tensor:
        gate = dict(temperature_up=self.temperature_up, temperature_down=self.temperature_down)
        return sapo(logprobs_NA, old_logprobs_NA, advantages_NA, mask_NA, **gate)
