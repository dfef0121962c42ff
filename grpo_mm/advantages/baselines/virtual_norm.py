"""NGRPO: an imagined perfect sample joins the group, so that a group that is all wrong is pushed away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.rollout.groups import group_count, group_ids, group_sum
from grpo_mm.rollout.table import Table


def virtual_norm(
    reward_N: Tensor, group_N: Tensor, *, best: float = 1.0, copies: int = 1, ddof: int = 1, eps: float = 1e-6
) -> Tensor:
    """(reward - mean) / (std + eps), mean and std over the group and `copies` samples of reward `best`, [N] float64.

    With one copy a group of n rows at 0 earns -1/√(n + 1) each, whatever the reward's unit; a group at `best` exactly 0.
    No copies: GRPO. Not zero-sum: the mean is negative.

    Args:
        reward_N: [N]; NaN rows take no part and stay NaN.
        best: the greatest reward there is; for a continuous scorer its upper bound.

    Source: arXiv:2509.18851 (NGRPO) and its code; grade A. Deviates: a group with one scored row follows the formula; the
    release hands it the raw reward.
    """
    reward_N, group_N = reward_N.double(), group_ids(group_N)
    # Measured from `best`, so that a group at `best` is exactly 0.
    short_N = reward_N - best
    count_N = group_count(short_N, group_N)[group_N] + copies
    mean_N = group_sum(short_N, group_N)[group_N] / count_N
    square_N = group_sum((short_N - mean_N) ** 2, group_N)[group_N] + copies * mean_N**2
    std_N = torch.sqrt(square_N / (count_N - ddof).clamp_min(1))
    # Rounding must not be divided by a tiny eps.
    return torch.where(std_N <= 1e-8, 0.0, (short_N - mean_N) / (std_N + eps)).where(reward_N.isfinite(), torch.nan)


@dataclass(frozen=True)
class VirtualNorm:
    """`virtual_norm` on every component."""

    best: float = 1.0
    """The highest reward there is, which the virtual samples have."""
    copies: int = 1
    """Virtual samples in each group; 0: plain GRPO."""
    ddof: Literal[0, 1] = 1
    """0: the standard deviation over n rows; 1: over n - 1."""
    eps: float = 1e-6
    """Added to the spread that is divided by."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    min_group_size = 2

    def __post_init__(self) -> None:
        if self.copies < 0:
            raise ValueError(f"copies = {self.copies}; wanted 0 or more.")
        not_below_zero(eps=self.eps)

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)
        settings = dict(best=self.best, copies=self.copies, ddof=self.ddof, eps=self.eps)
        return table.with_values({n: virtual_norm(v, group_M, **settings) for n, v in table.values.items()})
