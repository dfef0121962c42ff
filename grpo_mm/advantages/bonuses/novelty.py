"""Correct samples that the policy found unlikely earn a bonus: the novelty sharpening of XRPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.advantages.shared.signals import signal, without
from grpo_mm.rollout.groups import group_ids, group_mean
from grpo_mm.rollout.table import Table


def novelty_bonus(
    advantage_N: Tensor, logprob_mean_N: Tensor, correct_N: Tensor, group_N: Tensor, *, slope: float, cap: float
) -> Tensor:
    """min(max(slope · (1 - η), 0), cap · A) for correct rows, η = exp(s - mean of the group's s); 0 for the others, [N].

    Never below 0: a correct row whose advantage is not positive, which only graded rewards have, gets none.

    Args:
        advantage_N: [N] A, normalised; NaN rows take no part.
        logprob_mean_N: [N] s, the mean token log-probability under the sampling policy.
        correct_N: [N] bool.

    Source: arXiv:2510.06672 (XRPO). Grade C: third parties that quote it; a public port caps by |A| and pays wrong rows
    too, which we do not.
    """
    group_N = group_ids(group_N)
    known_N = torch.where(torch.isfinite(advantage_N), logprob_mean_N.double(), torch.nan)
    eta_N = torch.exp(known_N - group_mean(known_N, group_N)[group_N])
    bonus_N = torch.minimum((slope * (1 - eta_N)).clamp_min(0), (cap * advantage_N).clamp_min(0))
    return torch.where(correct_N & torch.isfinite(advantage_N), bonus_N, 0.0)


@dataclass(frozen=True)
class Novelty:
    """Adds `novelty_bonus` to the advantages. It goes after `group_norm`.

    `correct`: a reward that the `group_norm` before was told to `skip`, or a column; above 1/2 is correct. None: rows whose
    advantage is positive, which are the correct ones of every group that a binary reward tells apart.
    """

    slope: float = 2.5
    """Times 1 - η, by which a row is less likely than its group."""
    cap: float = 0.5
    """The largest bonus, as a share of the row's advantage."""
    correct: str | None = None
    """The reward or column that says which rows are correct; null: those with a positive advantage."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    min_group_size = 2
    columns = frozenset({"logprob_mean"})
    why = "It holds the mean log-probability of a row's tokens under the sampling policy."

    def __post_init__(self) -> None:
        not_below_zero(slope=self.slope, cap=self.cap)

    def __call__(self, table: Table) -> Table:
        group_M, s_M = table.key(self.key), table.columns["logprob_mean"]
        rest = table.values if self.correct is None else without(table, self.correct)
        named_M = None if self.correct is None else signal(table, self.correct, stage="novelty") > 0.5

        def sharpened(value_M: Tensor) -> Tensor:
            correct_M = value_M > 0 if named_M is None else named_M
            return value_M + novelty_bonus(value_M, s_M, correct_M, group_M, slope=self.slope, cap=self.cap)

        return table.with_values({name: sharpened(value_M) for name, value_M in rest.items()})
