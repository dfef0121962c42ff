"""A quantile of the group as its baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import is_constant, over
from grpo_mm.rollout.groups import group_count, group_ids, spread
from grpo_mm.rollout.table import Table


def group_quantile(value_N: Tensor, group_N: Tensor, *, quantile: float) -> Tensor:
    """The smallest value of the group that at least a share `quantile` of it does not exceed, [number of groups].

    NaN takes no part; a group without a value gets NaN.
    """
    finite_N = torch.isfinite(value_N)
    count = group_count(value_N, group_N)
    value, group = value_N[finite_N], group_N[finite_N]
    by_value = torch.argsort(value, stable=True)
    value = value[by_value[torch.argsort(group[by_value], stable=True)]]
    start = (torch.cumsum(count, 0) - count).long()
    rank = (torch.ceil(quantile * count - 1e-9).clamp_min(1) - 1).long()
    result = value_N.new_full(count.shape, torch.nan)
    filled = count > 0
    result[filled] = value[(start + rank)[filled]]
    return result


def quantile_norm(
    reward_N: Tensor, group_N: Tensor, *, quantile: float = 0.4, ddof: Literal[0, 1] = 0, eps: float = 1e-4
) -> Tensor:
    """Advantages over a quantile of the group: (reward - Q) / (std of the group + eps).

    For rewards 0 and 1 it is a switch: a group with a share of successes up to 1 - `quantile` has Q = 0 and reinforces its
    successes alone; an easier one has Q = 1 and discourages its failures alone.

    Args:
        reward_N: [N] any float dtype, computed in float64; NaN rows take no part and stay NaN.
        group_N: [N] integer.

    Returns:
        [N] float64; exactly 0 in a group whose rewards are all equal (within 1e-8). Not zero-mean.

    Source: arXiv:2509.22611 (quantile advantage estimation). Evidence D: from its abstract; the scale is uncertain (ours is the
    group's std), and so is the default of `quantile`.
    """
    reward_N, group_N = reward_N.double(), group_ids(group_N)
    centred_N = reward_N - group_quantile(reward_N, group_N, quantile=quantile)[group_N]
    centred_N = torch.where(is_constant(reward_N, group_N) & torch.isfinite(reward_N), 0.0, centred_N)
    return over(centred_N, spread(reward_N, group_N, scale="std", ddof=ddof) + eps)


@dataclass(frozen=True)
class QuantileNorm:
    """`quantile_norm` on every component of the table."""

    quantile: float = 0.4
    """The quantile of the group's rewards that is subtracted, in [0, 1]."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""
    ddof: Literal[0, 1] = 0
    """0: the standard deviation over n rows; 1: over n - 1."""
    eps: float = 1e-4
    """Added to the spread that is divided by."""

    min_group_size = 2

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1 or self.eps < 0:
            raise ValueError(f"quantile = {self.quantile}, eps = {self.eps}; wanted a share in (0, 1], and 0 or more.")

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)
        settings = dict(quantile=self.quantile, ddof=self.ddof, eps=self.eps)
        return table.with_values(
            {n: quantile_norm(value_M, group_M, **settings) for n, value_M in table.values.items()}
        )
