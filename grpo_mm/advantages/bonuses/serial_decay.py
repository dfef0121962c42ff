"""S-GRPO: of the exits along one line of reasoning, the earliest correct one earns the most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.table import Table


def serial_decay(
    score_N: Tensor, order_N: Tensor, group_N: Tensor, *, decay: float = 0.5, correct_above: float = 0.5
) -> Tensor:
    """The n-th correct exit of a group, from the earliest to the latest, earns decay^(n-1); wrong ones 0. [N] float64.

    Args:
        score_N: [N], correct where above `correct_above`; NaN exits are not counted and stay NaN.
        order_N: [N] where an exit lies along its line; equal ones in the order of the rows.
        group_N: [N] integer.

    Source: arXiv:2505.07686 (S-GRPO), grade C; decay 1/2.
    """
    group_N = group_ids(group_N)
    order = torch.argsort(order_N, stable=True)
    order = order[torch.argsort(group_N[order], stable=True)]
    correct = (score_N > correct_above)[order].long()
    size = torch.bincount(group_N)
    before = torch.cat([correct.new_zeros(1), correct.cumsum(0)])
    number = before[1:] - before[torch.cumsum(size, 0) - size][group_N[order]]
    earned_N = torch.zeros(len(score_N), dtype=torch.float64)
    earned_N[order] = torch.where(correct > 0, decay ** (number.double() - 1), 0.0)
    return torch.where(score_N.isnan(), torch.nan, earned_N)


@dataclass(frozen=True)
class SerialDecay:
    """`serial_decay` of each reward within a prompt; the rollout declares `order` [N]. Before {kind: group_norm, scale: none}."""

    decay: float = 0.5
    """Factor from one correct exit to the next later one."""
    correct_above: float = 0.5
    """Above it an exit's reward counts as correct."""

    min_group_size = 2
    columns = frozenset({"order"})
    why = "It pays early exits, so each row must say where on its line it stopped."

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay = {self.decay}; wanted above 0, at most 1.")

    def __call__(self, table: Table) -> Table:
        group_M = table.key(("prompt", "action", "tag"))
        how = dict(decay=self.decay, correct_above=self.correct_above)
        return table.with_values(
            {name: serial_decay(v, table.columns["order"], group_M, **how) for name, v in table.values.items()}
        )
