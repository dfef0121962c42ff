"""Several components to their mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from grpo_mm.rollout.table import Table


@dataclass(frozen=True)
class Average:
    """The plain mean of the components that apply to a row; a row one of whose rewards failed becomes NaN.

    Source: arXiv:2506.02864 (BNPO), which averages the advantages of several rewards; grade A.
    """

    min_group_size = 1

    def __call__(self, table: Table) -> Table:
        mean_M = torch.stack(list(table.values.values()), dim=1).nanmean(dim=1)
        return table.with_values({"mean": torch.where(table.columns["failed"], torch.nan, mean_M)})
