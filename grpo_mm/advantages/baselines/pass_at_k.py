"""Pass@k: a sample is worth what it adds to the best of k, so that a group keeps several ways to be right."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import is_constant, over
from grpo_mm.rollout.groups import group_count, group_ids, spread
from grpo_mm.rollout.table import Table

Against = Literal["mean", "without"]
MaxScale = Literal["none", "std", "max_std"]


def pass_at_k(
    reward_N: Tensor,
    group_N: Tensor,
    *,
    k: int | None = None,
    against: Against = "mean",
    scale: MaxScale = "max_std",
    eps: float = 1e-6,
) -> Tensor:
    """The mean of max(S) over all sets S of k samples of the group that hold the sample, less a baseline, [N] float64.

    All sets are counted, none is drawn: for rewards r_1 ≤ … ≤ r_n the mean of max(S) is Σ_j r_j·C(j-1, k-1) / C(n, k).

    Args:
        reward_N: [N] any scale; NaN rows take no part and stay NaN.
        k: None is the whole group, as it is for a group with fewer than k scored rows. With mean the whole group is the only set,
            and nobody earns: such a group teaches nothing.
        against: mean: of max(S) over all sets S. For rewards of 0 and 1 with m wrong samples and R = 1 - C(m, k)/C(n, k) that is
            1 - R for the right ones and 1 - R - C(m-1, k-1)/C(n-1, k-1) for the wrong ones.
            without: of max(S) without the sample itself, k ≥ 2. With k None only the best sample earns: best - second best.
        scale: max_std: the standard deviation of max(S) over all sets, √(R(1-R)) for rewards of 0 and 1; std: of the group's
            rewards (sample); none.

    Raises:
        ValueError: k None with mean.

    Source: mean, max_std: arXiv:2508.10751, section 2.4 (analytical derivation), for 0 and 1; any other reward is our reading of
    the same means. without, k None: arXiv:2503.19595 and two libraries, which divide by std. Grade C: written down from the
    formulas. k = 1 with max_std is GRPO with ddof 0.
    """
    _check_sets(k, against)
    reward_N, group_N = reward_N.double(), group_ids(group_N)
    finite_N = torch.isfinite(reward_N)
    by_value = torch.argsort(torch.where(finite_N, reward_N, torch.inf), stable=True)
    order = by_value[torch.argsort(group_N[by_value], stable=True)]
    order = order[finite_N[order]]
    count_N = group_count(reward_N, group_N).long()[group_N]
    result_N = torch.full_like(reward_N, torch.nan)
    for size in count_N[order].unique().tolist():
        rows_gn = order[count_N[order] == size].view(-1, size)
        result_N[rows_gn] = _sorted_groups(reward_N[rows_gn], min(k or size, size), against, scale, eps)
    if scale == "std":
        result_N = over(result_N, spread(reward_N, group_N, scale="std", ddof=1) + eps)
    return torch.where(is_constant(reward_N, group_N) & result_N.isfinite(), 0.0, result_N)


def _sorted_groups(reward_gn: Tensor, k: int, against: Against, scale: MaxScale, eps: float) -> Tensor:
    """Of groups of n scored rows in ascending order."""
    size = reward_gn.shape[1]
    # Against the best: where every set holds one as good, all that follows is exactly 0, and stages that count zeros see it.
    reward_gn = reward_gn - reward_gn[:, -1:]
    # Sets that hold i: its own reward where it is the best of them, that of a later one where that is the best.
    holding = comb(size - 1, k - 1)
    own_n, later_n, best_n, other_n = (
        reward_gn.new_tensor([share(j) for j in range(size)])
        for share in (
            lambda j: comb(j, k - 1) / holding,
            lambda j: comb(j - 1, k - 2) / holding if j > 0 and k > 1 else 0.0,
            lambda j: comb(j, k - 1) / comb(size, k),
            lambda j: comb(j, k - 2) / holding if k > 1 else 0.0,
        )
    )
    if against == "without":
        # The sets in which i is the best: by how much it beats the best of the others.
        below_gn = (reward_gn * other_n).cumsum(1) - reward_gn * other_n
        return reward_gn * (other_n.cumsum(0) - other_n) - below_gn
    above_gn = (reward_gn * later_n).flip(1).cumsum(1).flip(1) - reward_gn * later_n
    mean_g1 = (reward_gn * best_n).sum(1, keepdim=True)
    centred_gn = reward_gn * own_n + above_gn - mean_g1
    if scale != "max_std":
        return centred_gn
    std_g1 = (((reward_gn - mean_g1) ** 2) * best_n).sum(1, keepdim=True).sqrt()
    # Where every set holds a right sample nothing varies, and what is left of the difference is rounding.
    return torch.where(std_g1 > eps, centred_gn / std_g1.clamp_min(eps), 0.0)


def _check_sets(k: int | None, against: Against) -> None:
    if k is None and against == "mean":
        raise ValueError(
            "k = null with against: mean; the whole group is then the only set, and no sample adds to it. Give k, or against: without."
        )


@dataclass(frozen=True)
class PassAtK:
    """`pass_at_k` of every component. With `against: without, k: null, scale: std` it is what libraries call grpo_passk."""

    k: int | None = 4
    against: Against = "mean"
    scale: MaxScale = "max_std"
    eps: float = 1e-6
    key: tuple[str, ...] = ("prompt",)

    def __post_init__(self) -> None:
        if self.k is not None and self.k < (2 if self.against == "without" else 1):
            raise ValueError(
                f"k = {self.k}; wanted 1 or more (2 or more with against: without), or null for the group."
            )
        _check_sets(self.k, self.against)
        if self.eps <= 0:
            raise ValueError(f"eps = {self.eps}; wanted above 0.")
        if self.against == "without" and self.scale == "max_std":
            raise ValueError(
                "against: without goes with scale: std or none; max_std is the spread of what mean compares with."
            )

    @property
    def min_group_size(self) -> int:
        """With mean one more than k, as among k samples there is one set only."""
        return max(2, self.k or 2) if self.against == "without" else self.k + 1

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)
        settings = dict(k=self.k, against=self.against, scale=self.scale, eps=self.eps)
        return table.with_values({n: pass_at_k(v, group_M, **settings) for n, v in table.values.items()})
