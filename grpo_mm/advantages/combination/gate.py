"""A reward that only counts where another one says so."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.shared.signals import signal, target_of
from grpo_mm.rollout.table import Table


def gate(target_N: Tensor, by_N: Tensor, *, threshold: float = 0.5) -> Tensor:
    """`target_N` where `by_N` reaches the threshold and 0 elsewhere, [N].

    Args:
        target_N: [N] any scale; NaN stays NaN where the gate is open and is 0 where it is closed.
        by_N: [N]; NaN (nobody knows) makes the result NaN.

    Source: arXiv:2508.05170 (Posterior-GRPO): R_outcome · R_process with R_outcome in {0, 1}. Grade C: formula from third
    parties that quote it. A threshold for graded outcomes is ours.
    """
    shut_N = torch.where(by_N >= threshold, target_N, torch.zeros_like(target_N))
    return torch.where(torch.isnan(by_N), torch.nan, shut_N)


@dataclass(frozen=True)
class Gate:
    """`gate` on the reward `target` by the reward or column `by`, e.g. the quality of the reasoning by its outcome.

    It goes before `weighted_sum`. Trap: in a group that is all right the gated reward alone decides, at unit variance:
    consider `group_norm` with scale none.
    """

    target: str
    """The reward that is let through or set to 0."""
    by: str
    """The reward or column that decides."""
    threshold: float = 0.5
    """From this value of `by` on the reward counts."""

    min_group_size = 1

    def __call__(self, table: Table) -> Table:
        target_M = table.values[target_of(table, self.target, stage="gate")]
        by_M = signal(table, self.by, stage="gate")
        return table.with_values({**table.values, self.target: gate(target_M, by_M, threshold=self.threshold)})
