"""GPG: what groups without a difference cannot teach, the others make up for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.rollout.groups import group_ids, group_sum
from grpo_mm.rollout.table import Table


def valid_groups_factor(advantage_N: Tensor, group_N: Tensor) -> float:
    """α = B / (B - M): groups with a scored row over those of them in which some advantage is not 0; 1 if there is none.

    With groups of one size, the mean over all rows is smaller than that over the rows that teach by just this factor.

    Trap: before a stage that compares within groups, every group with a reward that is not 0 counts as one that teaches.

    Source: arXiv:2504.02546 (GPG), the factor α of the corrected gradient. Grade C: the text of others. Deviates from a library,
    which divides rows by rows with a score that is not 0: that is no property of groups, and changes with the reward's zero.
    """
    group_N = group_ids(group_N)
    finite_N = torch.isfinite(advantage_N)
    scored = group_sum(finite_N.double(), group_N) > 0
    valid = group_sum((finite_N & (advantage_N != 0)).double(), group_N) > 0
    return float(scored.sum() / valid.sum()) if valid.any() else 1.0


@dataclass(frozen=True)
class ValidGroups:
    """Every component times its `valid_groups_factor`, over all ranks. It goes after the stage that compares within groups."""

    key: tuple[str, ...] = ("prompt",)

    min_group_size = 1

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)
        return table.with_values({n: v * valid_groups_factor(v, group_M) for n, v in table.values.items()})
