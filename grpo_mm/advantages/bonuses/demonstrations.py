"""TempSamp-R1: what an injected solution earns, so that it does not drag every own sample below zero.

The three remedies are alternatives. Rows are told apart by the column `demo`, 1 for an injected solution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import group_norm
from grpo_mm.advantages.shared.one_reward import OneReward
from grpo_mm.rollout.groups import group_ids, group_std
from grpo_mm.rollout.table import Table

WHY = "It tells injected solutions from own samples: an engine with `demonstrate` declares it."


def shaped(reward: Tensor, *, threshold: float = 0.8, above: float = 0.01, below: float = 1.0) -> Tensor:
    """f(r) = τ + α1 ln(1 + r - τ) from τ on, τ - (e^(α2 (τ - r)) - 1) / (e^α2 - 1) below it, any shape.

    Flat where rewards are good, so that a perfect solution is hardly better than a decent sample, and steep where they are poor.
    f(0) is not 0: log the raw reward. It goes before rewards are summed: a format bonus would move the threshold.

    Source: arXiv:2509.18056 (TempSamp-R1), non-linear reward shaping with τ .8, α1 .01, α2 1; grade B.
    """
    good = threshold + above * torch.log1p((reward - threshold).clamp_min(0))
    poor = threshold - torch.expm1(below * (threshold - reward)) / math.expm1(below)
    return torch.where(reward >= threshold, good, poor)


def anchored_norm(
    reward_N: Tensor, group_N: Tensor, demo_N: Tensor, *, factor: float = 1.2, ddof: int = 0, eps: float = 1e-4
) -> Tensor:
    """Own samples normalised among themselves, [N]; an injected solution gets `factor` times the best of them.

    Args:
        reward_N: [N]; NaN rows take no part and stay NaN.
        demo_N: [N] bool, the injected solutions.

    Where all own samples tie the best of them is 0 and nobody would learn: such a group is normalised with the solution.

    Source: arXiv:2509.18056 (TempSamp-R1), advantage anchoring, λ_off 1.2; grade B. The rule for ties is ours.
    """
    reward_N, group_N, demo_N = reward_N.double(), group_ids(group_N), demo_N.bool()
    own_N = reward_N.masked_fill(demo_N, torch.nan)
    alone_N = group_norm(own_N, group_N, ddof=ddof, eps=eps)
    groups = int(group_N.max()) + 1 if group_N.numel() else 0
    best_B = torch.full((groups,), -torch.inf, dtype=torch.float64)
    best_B = best_B.scatter_reduce(0, group_N, alone_N.nan_to_num(nan=-torch.inf), "amax")
    anchored_N = torch.where(demo_N & reward_N.isfinite(), factor * best_B[group_N], alone_N)
    varies_B = group_std(own_N, group_N, ddof=0) > 0
    joint_N = group_norm(reward_N, group_N, ddof=ddof, eps=eps)
    return torch.where((varies_B & (best_B > 0))[group_N], anchored_N, joint_N)


@dataclass(frozen=True)
class ShapeReward(OneReward):
    """`shaped` on the reward `target`; of own samples and injected solutions alike."""

    target: str | None = None
    """The reward that is changed; null: the only one there is."""
    threshold: float = 0.8
    """τ: the reward from which on it is flattened."""
    above: float = 0.01
    """α1: slope of the logarithm from τ on."""
    below: float = 1.0
    """α2: how steep the exponential below τ is."""

    stage = "shape_reward"
    min_group_size = 1

    def __post_init__(self) -> None:
        if self.above < 0 or self.below <= 0:
            raise ValueError(f"above = {self.above}, below = {self.below}; wanted 0 or more, and above 0.")

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        return shaped(value_M, threshold=self.threshold, above=self.above, below=self.below)


@dataclass(frozen=True)
class CapDemonstrations(OneReward):
    """The reward `target` of an injected solution is at most `fraction` · `best`.

    Source: arXiv:2509.18056 (TempSamp-R1), reward down-scaling, .8 of the maximum; grade B.
    """

    target: str | None = None
    """The reward that is changed; null: the only one there is."""
    fraction: float = 0.8
    """Of `best`, what a solution earns at most."""
    best: float = 1.0
    """The highest value of that reward."""

    stage = "cap_demonstrations"
    min_group_size = 1
    columns = frozenset({"demo"})
    why = WHY

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        return torch.where(table.columns["demo"].bool(), value_M.clamp_max(self.fraction * self.best), value_M)


@dataclass(frozen=True)
class ExemptDemonstrations(OneReward):
    """The reward `target` of an injected solution is `value`: it has the form that it has, and is not asked about it.

    Source: arXiv:2509.18056 (TempSamp-R1), second phase, where it is not said what stands in the thinking slot (uncertain); an
    answer alone that is exempted from the format reward is our choice.
    """

    target: str
    """The reward that solutions are exempted from."""
    value: float = 1.0
    """What they get instead."""

    stage = "exempt_demonstrations"
    min_group_size = 1
    columns = frozenset({"demo"})
    why = WHY

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        # Where the reward does not apply to a row at all, it still does not.
        return torch.where(table.columns["demo"].bool() & value_M.isfinite(), self.value, value_M)


@dataclass(frozen=True)
class AnchoredNorm:
    """`anchored_norm` in place of `group_norm`."""

    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""
    factor: float = 1.2
    """λ_off: a solution's advantage in multiples of the best own sample's."""
    ddof: int = 0
    """0: the standard deviation over n rows; 1: over n - 1."""
    eps: float = 1e-4
    """Added to the spread that is divided by."""

    min_group_size = 3
    columns = frozenset({"demo"})
    why = WHY

    def __post_init__(self) -> None:
        if self.factor < 0 or self.eps < 0 or self.ddof not in (0, 1):
            raise ValueError(
                f"factor = {self.factor}, eps = {self.eps}, ddof = {self.ddof}; wanted 0 or more, and 0 or 1."
            )

    def __call__(self, table: Table) -> Table:
        group_M, demo_M = table.key(self.key), table.columns["demo"]
        settings = dict(factor=self.factor, ddof=self.ddof, eps=self.eps)
        return table.with_values({n: anchored_norm(v, group_M, demo_M, **settings) for n, v in table.values.items()})
