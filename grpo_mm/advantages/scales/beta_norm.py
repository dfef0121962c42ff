"""BNPO: centred rewards over a Beta density at the prompt's success rate, whose parameters follow the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import group_norm
from grpo_mm.rollout.groups import group_ids, group_mean
from grpo_mm.rollout.table import Table


def beta_norm(reward_N: Tensor, group_N: Tensor, *, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A = w · (r - p): p the group's mean, w = 1 / Beta density at p, [N] float64.

    The Beta's parameters are those of `beta_parameters` over the p of all groups, so an advantage depends on the batch. With
    one group, or with groups that are all equally hard, w is 1.

    Args:
        reward_N: [N]; NaN rows take no part and stay NaN.
        low, high: the ends of the reward, mapped to 0 and 1; what lies outside counts as its end.

    Source: arXiv:2506.02864 (BNPO) and its code; grade A. Deviates: groups that are all equally hard give NaN in the
    released code (a variance of 0); a group with one scored row earns 0 here, its reward there. TRL's loss type "bnpo" is
    something else.
    """
    group_N = group_ids(group_N)
    reward_N = ((reward_N.double() - low) / (high - low)).clamp(0, 1)
    rate_B = group_mean(reward_N, group_N)
    alpha, beta = beta_parameters(rate_B)
    # 0 exactly where a group is constant: there the weight may be as large as it gets.
    centred_N = group_norm(reward_N, group_N, scale="none")
    return beta_weight(rate_B, alpha=alpha, beta=beta)[group_N] * centred_N


def beta_parameters(rate_B: Tensor) -> tuple[float, float]:
    """(α, β), both at least 1, moment-matched to success rates; NaN rates take no part, (1, 1) without a spread.

    k = m(1 - m)/v - 1, α = max(1, 1 + k·m/3), β = max(1, 1 + k·(1 - m)/3); v divides by the number of groups less one.
    """
    rate_B = rate_B[rate_B.isfinite()]
    if len(rate_B) < 2:
        return 1.0, 1.0
    mean, variance = float(rate_B.mean()), float(rate_B.var())
    if variance <= 1e-16:  # rounding of equal rates
        return 1.0, 1.0
    k = mean * (1 - mean) / variance - 1
    return max(1.0, 1 + k * mean / 3), max(1.0, 1 + k * (1 - mean) / 3)


def beta_weight(rate_B: Tensor, *, alpha: float, beta: float, max_weight: float = 1e6) -> Tensor:
    """1 / BetaPDF(rate; α, β), at most `max_weight`. α = β = 1: 1; α = β = 3/2: π/8 over the deviation of 0/1 rewards."""
    log_norm = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    density = torch.exp(
        torch.xlogy(rate_B.new_tensor(alpha - 1), rate_B)
        + torch.xlogy(rate_B.new_tensor(beta - 1), 1 - rate_B)
        - log_norm
    )
    return (1 / density).clamp(max=max_weight)


@dataclass(frozen=True)
class BetaNorm:
    """`beta_norm` on every component; {kind: average} after it makes one of several."""

    low: float = 0.0
    """The reward that counts as 0; below it too."""
    high: float = 1.0
    """The reward that counts as 1; above it too."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    min_group_size = 2

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low}, high = {self.high}; wanted the least and the greatest reward.")

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)
        return table.with_values(
            {n: beta_norm(v, group_M, low=self.low, high=self.high) for n, v in table.values.items()}
        )
