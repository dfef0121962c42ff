"""Short answers are asked for only where the group has become right: GRPO-λ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.shared.one_reward import OneReward
from grpo_mm.rollout.groups import group_ids, group_mean, group_std
from grpo_mm.rollout.table import Table


def efficient_groups(correct_N: Tensor, group_N: Tensor, *, share: float) -> Tensor:
    """True for the rows of the round(share · groups) groups with the most correct rows, one at least, [N] bool.

    Equal groups: the one with the lower id first. Groups without a scored row are not counted. Share 0 chooses none.
    """
    rate_B = group_mean(correct_N, group_N)
    # A fifth of two prompts rounds to nothing, which would switch the method off without a word.
    count = max(round(share * int(torch.isfinite(rate_B).sum())), int(share > 0))
    chosen_B = torch.zeros(len(rate_B), dtype=torch.bool)
    chosen_B[torch.argsort(-rate_B.nan_to_num(nan=-torch.inf), stable=True)[:count]] = True
    return chosen_B[group_N]


def length_penalised(correct_N: Tensor, length_N: Tensor, group_N: Tensor, *, slope: float) -> Tensor:
    """1 - slope · sigmoid(z) for a correct row, z its length among the correct rows of its group; 0 for the others, [N].

    z uses the population standard deviation and is 0 where it is 0, as for a single correct row.
    """
    is_correct_N = correct_N > 0.5
    among_N = torch.where(is_correct_N, length_N, torch.nan)
    deviation_N = among_N - group_mean(among_N, group_N)[group_N]
    std_N = group_std(among_N, group_N, ddof=0)[group_N]
    z_N = torch.where(std_N > 0, deviation_N / std_N.where(std_N > 0, 1.0), 0.0)
    reward_N = torch.where(is_correct_N, 1 - slope * torch.sigmoid(z_N), 0.0)
    return torch.where(torch.isfinite(correct_N), reward_N, torch.nan)


def length_switch(correct_N: Tensor, length_N: Tensor, group_N: Tensor, *, share: float, slope: float) -> Tensor:
    """Correct or not (1 or 0) in most groups, and the length-penalised reward in the most correct `share` of them, [N].

    Args:
        correct_N: [N] above 1/2 is correct; NaN rows take no part and stay NaN.
        length_N: [N] trained tokens.

    Source: arXiv:2505.18086 (GRPO-λ). Grade C: third parties that quote it. Uncertain: how the number of groups is rounded
    and how equal groups are ordered (here: to the nearest, but one at least; by id), and the slope (0.2 here; a public re-implementation has
    0.6, and penalises wrong rows too, which we do not).
    """
    correct_N, length_N, group_N = correct_N.double(), length_N.double(), group_ids(group_N)
    plain_N = torch.where(torch.isfinite(correct_N), (correct_N > 0.5).double(), torch.nan)
    penalised_N = length_penalised(correct_N, length_N, group_N, slope=slope)
    return torch.where(efficient_groups(plain_N, group_N, share=share), penalised_N, plain_N)


@dataclass(frozen=True)
class LengthSwitch(OneReward):
    """`length_switch` on the reward `target`, which says whether a row is correct. It goes before `group_norm`.

    Trap: in a group that is all right, `group_norm` with scale std turns the small spread of lengths into ±1.4: use scale
    none or batch where that is too much.
    """

    target: str | None = None
    """None: the only reward there is."""
    share: float = 0.2
    """λ: the part of the groups that is asked to be short."""
    slope: float = 0.2
    """α: what the longest may lose."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    stage = "length_switch"
    min_group_size = 1
    columns = frozenset({"length"})
    why = "It holds the number of trained tokens of a row."

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.slope <= 1:
            raise ValueError(f"share = {self.share}, slope = {self.slope}; wanted both within [0, 1].")

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        return length_switch(value_M, table.columns["length"], table.key(self.key), share=self.share, slope=self.slope)
