"""From the reward of each position of a row to what is still to come from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.table import Table


def reward_to_go(reward_M: Tensor, row_M: Tensor, position_M: Tensor, *, gamma: float = 1.0) -> Tensor:
    """The return from each position of a row on: Σ over positions k >= t of gamma^(k - t) · reward_k, [M] float64.

    Args:
        reward_M: [M] any scale; NaN makes every return that it is part of NaN.
        row_M: [M] integer, the row of a reward.
        position_M: [M] integer, its place in the row: time steps, list ranks. Need not be consecutive; one reward each.
        gamma: in [0, 1], what a step of waiting costs.

    Source: the step return of arXiv:2505.10978 (GiGPO), section 4.2; with gamma 1, the reward-to-go of arXiv:2510.20150
    (Rank-GRPO). Grades C and A.
    """
    row_M = group_ids(row_M)
    position_P, at_M = torch.unique(position_M, return_inverse=True)
    wait_PP = (position_P[:, None] - position_P[None, :]).double()  # k - t
    weight_PP = torch.where(wait_PP >= 0, gamma ** wait_PP.clamp_min(0), 0.0)
    reward_RP = torch.zeros((int(row_M.max()) + 1 if row_M.numel() else 0, len(position_P)), dtype=torch.float64)
    reward_RP[row_M, at_M] = reward_M.double()
    lost_RP = reward_RP.isnan().double() @ (weight_PP > 0).double()
    return torch.where(lost_RP > 0, torch.nan, reward_RP.nan_to_num() @ weight_PP)[row_M, at_M]


def dcg_discount(rank_M: Tensor) -> Tensor:
    """1 / log2(rank + 1) of list ranks counted from 1: 1, 0.6309, 0.5, … (discounted cumulative gain)."""
    return 1 / torch.log2(rank_M.double() + 1)


def needs_positions(table: Table, stage: str) -> None:
    """Raises ConfigError unless every output credits one action or unit of its row."""
    if (table.columns["action"] < 0).any():
        raise ConfigError(
            f"{stage} compares the positions of a row, but the rollout scores rows as a whole: use an engine or a tree "
            "whose outputs credit single steps, turns or items."
        )


@dataclass(frozen=True)
class RewardToGo:
    """`reward_to_go` along the actions (or units) of each row.

    discount: what a position's reward is worth in itself. dcg: `dcg_discount` of its rank, so that an item answers for itself
    and for all that it makes room for (Rank-GRPO, log_decay). Rank-GRPO's exp_inf is no stage at all: r_k = hit_k.
    """

    gamma: float = 1.0
    """Discount from one action to the next, in [0, 1]."""
    discount: Literal["none", "dcg"] = "none"
    """dcg: an item's reward counts less the lower its rank; none: all alike."""

    min_group_size = 1

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma = {self.gamma}; wanted 0 to 1.")

    def __call__(self, table: Table) -> Table:
        needs_positions(table, "reward_to_go")
        row_M, action_M = table.key(("prompt", "sample", "tag")), table.columns["action"]
        worth_M = dcg_discount(action_M + 1) if self.discount == "dcg" else torch.ones(len(table), dtype=torch.float64)
        return table.with_values(
            {
                name: reward_to_go(value_M * worth_M, row_M, action_M, gamma=self.gamma)
                for name, value_M in table.values.items()
            }
        )
