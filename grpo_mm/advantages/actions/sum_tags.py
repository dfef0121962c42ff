"""Several outputs of one action to one value."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.table import Table


def sum_within(value_M: Tensor, set_M: Tensor) -> Tensor:
    """Sums over each set, [number of sets]; NaN where any of its values is NaN."""
    sets = int(set_M.max()) + 1 if set_M.numel() else 0
    return value_M.new_zeros(sets).index_add_(0, set_M, value_M)


@dataclass(frozen=True)
class SumTags:
    """Adds up the advantages of an action's outputs (G²RPO: its granularities), so that a bound after it holds for the sum.

    Without it they are added at the end, after any `clamp`.

    Source: arXiv:2510.01982 (G²RPO), eq. 9: A_k = Σ_j Σ_λ A_{k,λ,j}; the sum over rewards j is `weighted_sum`.
    """

    min_group_size = 1

    def __call__(self, table: Table) -> Table:
        set_M = group_ids(table.columns["prompt"], table.columns["sample"], table.columns["action"])
        sets = int(set_M.max()) + 1 if set_M.numel() else 0
        first = torch.full((sets,), len(table)).scatter_reduce(0, set_M, torch.arange(len(table)), "amin")
        values = {name: sum_within(value_M, set_M) for name, value_M in table.values.items()}
        failed = sum_within(table.columns["failed"].double(), set_M) > 0
        return replace(table, values=values, columns={**table.take(first).columns, "failed": failed})
