"""Correct samples that the policy found likely anyway earn less: rewarding the unlikely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.shared.one_reward import OneReward
from grpo_mm.rollout.groups import group_count, group_ids, group_mean
from grpo_mm.rollout.table import Table


def group_ranks(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Rank of each value within its group, 0 = lowest; equal values share the mean of their ranks, [N]; NaN for NaN."""
    group_N = group_ids(group_N)
    finite_N = torch.isfinite(value_N)
    value, group = value_N[finite_N].double(), group_N[finite_N]
    by_value = torch.argsort(value, stable=True)
    order = by_value[torch.argsort(group[by_value], stable=True)]
    size = torch.bincount(group, minlength=1)
    place = torch.arange(len(order)) - (torch.cumsum(size, 0) - size)[group[order]]
    new_run = torch.ones(len(order), dtype=torch.int64)
    new_run[1:] = ((value[order][1:] != value[order][:-1]) | (group[order][1:] != group[order][:-1])).long()
    run = torch.cumsum(new_run, 0) - 1
    rank = torch.empty_like(value)
    rank[order] = group_mean(place.double(), run)[run]
    result_N = torch.full(value_N.shape, torch.nan, dtype=torch.float64)
    result_N[finite_N] = rank
    return result_N


def rank_factor(reward_N: Tensor, likelihood_N: Tensor, group_N: Tensor, *, beta: float = 0.25) -> Tensor:
    """Positive rewards times 1 - beta · rank/G, rank 0 for the least likely row of the group and G its scored rows, [N].

    Args:
        reward_N: [N] ≤ 0 stays as it is; NaN rows take no part and stay NaN.
        likelihood_N: [N] log-probability of the row under the sampling policy, any monotone scale.

    Source: arXiv:2506.02355. Grade A: the release. Ranks are over all rows of a group, wrong ones too. Deviates: equal
    likelihoods share the mean of their ranks, where the release breaks ties by order.
    """
    reward_N, group_N = reward_N.double(), group_ids(group_N)
    known_N = torch.where(torch.isfinite(reward_N), likelihood_N.double(), torch.nan)
    share_N = group_ranks(known_N, group_N) / group_count(known_N, group_N)[group_N]
    factor_N = torch.where(reward_N > 0, 1 - beta * share_N, 1.0)
    return reward_N * factor_N


@dataclass(frozen=True)
class RankFactor(OneReward):
    """`rank_factor` on the reward `target`. It goes before `group_norm`."""

    target: str | None = None
    """None: the only reward there is."""
    beta: float = 0.25
    """How much less the likeliest right row earns, a share in [0, 1)."""
    likelihood: Literal["mean", "sum"] = "mean"
    """Of a row's tokens: mean is the released code, sum (the probability of the sequence) the paper. They rank differently
    where lengths differ."""
    mixed_only: bool = True
    """Leaves out groups without both a positive and another reward, as the release does; otherwise all-correct groups
    teach by rank alone."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    stage = "rank_factor"
    min_group_size = 2
    why = "It holds the log-probability of a row's tokens under the sampling policy."

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta = {self.beta}; wanted within [0, 1].")

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({f"logprob_{self.likelihood}"})

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        group_M = table.key(self.key)
        (column,) = self.columns
        found_M = rank_factor(value_M, table.columns[column], group_M, beta=self.beta)
        if self.mixed_only:
            positive_M = torch.where(torch.isfinite(value_M), (value_M > 0).double(), torch.nan)
            share_M = group_mean(positive_M, group_M)[group_M]
            found_M = torch.where((share_M > 0) & (share_M < 1), found_M, torch.nan)
        return found_M
