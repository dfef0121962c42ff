"""Centre by the group, divide by a spread: the estimator that every other one starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import Center, Scale, baseline, group_ids, spread
from grpo_mm.rollout.table import Table

CONSTANT = 1e-8
"""Rewards of a group that lie closer together than this are equal: what is left is rounding."""


def group_norm(
    reward_N: Tensor,
    group_N: Tensor,
    *,
    center: Center = "mean",
    scale: Scale = "std",
    scale_over: Literal["group", "batch"] = "group",
    ddof: int = 0,
    eps: float = 1e-4,
) -> Tensor:
    """Advantages relative to the group: (reward - centre of the group) / (spread + eps).

    Args:
        reward_N: [N] any float dtype, computed in float64; NaN rows take no part and stay NaN.
        group_N: [N] integer; groups may have any size and order.
        center: mean, leave_one_out (the mean of the others), median, or none.
        scale: std, mad (median absolute deviation) or none.
        scale_over: the spread of the group, or of all rewards of the batch ("global std").
        ddof: 0 divides the variance by n (population), 1 by n - 1 (sample).
        eps: added to the spread, never to the variance; 0 is allowed.

    Returns:
        [N] float64; exactly 0 in a group whose rewards are all equal (within 1e-8), or that has one scored row, unless
        center is none.

    Source: arXiv:2402.03300 (GRPO), section 4.1.2. Flow-GRPO (arXiv:2505.05470): ddof 0, eps 1e-4, scale_over batch;
    DanceGRPO (arXiv:2505.07818): ddof 1, eps 1e-8, scale_over group; Dr.GRPO (arXiv:2503.20783): scale none.
    """
    reward_N, group_N = reward_N.double(), group_ids(group_N)
    everything_N = torch.zeros_like(group_N)
    centred_N = reward_N - baseline(reward_N, group_N, center=center)
    if center != "none":
        # Rounding must not be divided by a tiny eps: a constant group earns exactly nothing.
        centred_N = torch.where(is_constant(reward_N, group_N) & torch.isfinite(reward_N), 0.0, centred_N)
    if scale == "none":
        return centred_N
    over_N = group_N if scale_over == "group" else everything_N
    return over(centred_N, spread(reward_N, over_N, scale=scale, ddof=ddof) + eps)


def over(centred_N: Tensor, divisor_N: Tensor) -> Tensor:
    """centred / divisor, exactly 0 where centred is 0, whatever the divisor; NaN stays NaN."""
    return torch.where(centred_N == 0, 0.0, centred_N / divisor_N)


def is_constant(value_N: Tensor, group_N: Tensor) -> Tensor:
    """True for the rows of groups whose finite values lie within 1e-8 of each other, [N] bool; `group_N` holds dense ids."""
    num_groups = int(group_N.max()) + 1 if group_N.numel() else 0
    finite_N = torch.isfinite(value_N)
    ends = [
        value_N.new_full((num_groups,), fill).scatter_reduce(
            0, group_N, torch.where(finite_N, value_N, fill), reduce=reduce
        )
        for reduce, fill in (("amin", torch.inf), ("amax", -torch.inf))
    ]
    return (ends[1] - ends[0] <= CONSTANT)[group_N]


@dataclass(frozen=True)
class GroupNorm:
    """`group_norm` on every component of the table; before `weighted_sum` it is "normalise, then sum".

    Traps: with scale mad, a group most of whose rewards are equal has a spread of 0, and its other rows earn ±1/eps: take
    {kind: median_norm}, which has a floor. With center none and scale std, a group whose rewards are equal and not 0 earns
    reward/eps.
    """

    key: tuple[str, ...] = ("prompt",)
    """The comparison set: any columns of the table."""
    center: Center = "mean"
    """What is subtracted: the group's mean, its median, the mean of the others (leave_one_out), or none."""
    scale: Scale = "std"
    """What is divided by: the standard deviation, the median absolute deviation (mad), or none."""
    scale_over: Literal["group", "batch"] = "group"
    """Whether the spread is that of each group, or of the whole batch."""
    ddof: Literal[0, 1] = 0
    """0: the standard deviation over n rows; 1: over n - 1."""
    eps: float = 1e-4
    """Added to the spread that is divided by."""
    skip: tuple[str, ...] = ()
    """Components that stay as they are, for a later stage."""

    def __post_init__(self) -> None:
        if self.eps < 0:
            raise ValueError(f"eps = {self.eps}; wanted 0 or more: it is added to the spread.")
        if self.eps == 0 and self.scale == "mad":
            raise ValueError(
                "eps = 0 with scale = mad, which is 0 where most rewards of a group are equal; wanted above 0."
            )

    @property
    def min_group_size(self) -> int:
        """2 where samples of one prompt are compared with each other."""
        compares = self.center != "none" or (self.scale != "none" and self.scale_over == "group")
        return 2 if compares and "prompt" in self.key else 1

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)
        settings = dict(center=self.center, scale=self.scale, scale_over=self.scale_over, ddof=self.ddof, eps=self.eps)
        absent = sorted(set(self.skip) - set(table.values))
        if self.skip and len(set(self.skip)) == len(table.values):
            raise ConfigError("group_norm: skip names every component; nothing is left to normalise.")
        if absent:
            raise ConfigError(f"group_norm: skip names {absent[0]!r}; there are {', '.join(sorted(table.values))}.")
        chosen = {name: value for name, value in table.values.items() if name not in self.skip}
        return table.with_values({**table.values, **{n: group_norm(v, group_M, **settings) for n, v in chosen.items()}})
