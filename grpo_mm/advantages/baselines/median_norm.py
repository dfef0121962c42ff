"""MC-GRPO: compared with the median of the group, whose own row is not trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import CONSTANT
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import Scale, group_count, group_ids, group_sum, spread
from grpo_mm.rollout.table import Table


def median_norm(
    reward_N: Tensor,
    group_N: Tensor,
    *,
    scale: Scale = "mad",
    floor: float = 0.1,
    eps: float = 1e-3,
    reweight: bool = False,
) -> Tensor:
    """(reward - median) / (max(spread, floor) + eps), [N] float64; not zero-sum.

    Args:
        reward_N: [N]; NaN rows take no part and stay NaN. An even number of them has the lower median, which is a row.
        scale: mad (median absolute deviation from the median), std (sample), none.
        floor: of the spread, in the reward's unit. 0 is the literal method, in which a group with a majority of equal
            rewards has MAD 0 and its other rows earn ±1/eps; 0.1 suits rewards between 0 and 1.
        reweight: times rows / rows with a non-zero advantage, as the GSM8K trainer of the release has it.

    Source: arXiv:2601.22582 (MC-GRPO) and its code: scale mad, eps 1e-3, floor 0. Grade A. Deviates by the floor.
    """
    reward_N, group_N = reward_N.double(), group_ids(group_N)
    pivot_N = pivots(reward_N, group_N)
    median_N = group_sum(reward_N.where(pivot_N, 0), group_N)[group_N]
    deviation_N = reward_N - median_N
    # Equal but for rounding is equal: the weights below count what is not 0.
    deviation_N = torch.where(deviation_N.abs() <= CONSTANT, 0.0, deviation_N)
    advantage_N = deviation_N
    if scale == "mad":
        distance_N = deviation_N.abs()
        mad_N = group_sum(distance_N.where(pivots(distance_N, group_N), 0), group_N)[group_N]
        advantage_N = deviation_N / (mad_N.clamp_min(floor) + eps)
    elif scale == "std":
        advantage_N = deviation_N / (spread(reward_N, group_N, scale="std", ddof=1).clamp_min(floor) + eps)
    if reweight:
        pushed_N = group_sum((advantage_N.nan_to_num() != 0).double(), group_N)[group_N]
        advantage_N = advantage_N * group_count(reward_N, group_N)[group_N] / pushed_N.clamp_min(1)
    return advantage_N


def pivots(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """True for the one row of each group that holds the (lower) median, [N] bool; the first of equals in the order."""
    finite_N, group_N = torch.isfinite(reward_N), group_ids(group_N)
    by_value = torch.argsort(reward_N.where(finite_N, torch.inf), stable=True)
    order = by_value[torch.argsort(group_N[by_value], stable=True)]
    size = torch.bincount(group_N)
    count = group_count(reward_N, group_N).long()
    middle = (torch.cumsum(size, 0) - size + (count - 1) // 2)[count > 0]
    result_N = torch.zeros_like(finite_N)
    result_N[order[middle]] = True
    return result_N


@dataclass(frozen=True)
class MedianNorm:
    """`median_norm` of the one reward; `drop_pivot` leaves the median's own row out of the update.

    A group has an odd number of rows, one more than are trained. With floor: 0 it is the literal method.
    """

    scale: Scale = "mad"
    """Spread: mad, the median absolute deviation from the median; std; or none."""
    floor: float = 0.1
    """The smallest spread that is divided by, in the reward's unit; 0: none."""
    eps: float = 1e-3
    """Added to the spread that is divided by."""
    reweight: bool = False
    """Advantages times rows / rows whose advantage is not 0."""
    drop_pivot: bool = True
    """The row whose reward is the median is left out of the update."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    min_group_size = 3

    def __post_init__(self) -> None:
        if self.floor < 0 or self.eps <= 0:
            raise ValueError(f"floor = {self.floor}, eps = {self.eps}; wanted 0 or more, and above 0.")

    def __call__(self, table: Table) -> Table:
        name, reward_M = table.only_value("median_norm")
        group_M = table.key(self.key)
        sizes = torch.bincount(group_M)
        if len(sizes) and bool((sizes % 2 == 0).all()):
            raise ConfigError(
                f"median_norm compares with the row in the middle, but groups have {int(sizes[0])} rows. Use an odd group_size: "
                "one more than you want to train."
            )
        settings = dict(scale=self.scale, floor=self.floor, eps=self.eps, reweight=self.reweight)
        result = table.with_values({name: median_norm(reward_M, group_M, **settings)})
        return result.leaving_out(pivots(reward_M, group_M)) if self.drop_pivot else result
