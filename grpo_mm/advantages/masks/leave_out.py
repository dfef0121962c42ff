"""Actions that are not trained, whatever their row earned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from grpo_mm.rollout.table import Table


@dataclass(frozen=True)
class LeaveOut:
    """Leaves out the actions at which the bool column `column` [N, A], which the rollout declares, is true.

    With `shared_prefix` it trains tokens that several rows have in common in one row only, as a rollout of serial exits
    marks them everywhere but in the full path (arXiv:2505.07686, S-GRPO; uncertain there, the choice is ours).
    """

    column: str = "shared_prefix"
    """The column that says which actions are left out."""

    min_group_size = 1
    why = "Rows that share no actions need no such stage."

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.column})

    def __call__(self, table: Table) -> Table:
        marked_MA = table.columns[self.column].bool()
        return table.plus_per_action(
            torch.zeros(marked_MA.shape, dtype=torch.float64).masked_fill_(marked_MA, torch.nan)
        )
