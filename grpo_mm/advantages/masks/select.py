"""Which rows are trained, chosen after they were compared with all the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.table import Table


def keep_extremes(advantage_N: Tensor, group_N: Tensor, *, keep: int) -> Tensor:
    """True for the keep/2 best and the keep/2 worst rows of each group, [N] bool; all rows of a group that small.

    Raises:
        ValueError: `keep` is odd or below 2.

    Source: arXiv:2505.07818 (DanceGRPO), best-of-N inference scaling: N = 24 samples, keep = 8.
    """
    _check(keep)
    group_N = group_ids(group_N)
    filled_N = advantage_N.where(torch.isfinite(advantage_N), torch.inf)
    by_value = torch.argsort(filled_N, stable=True)
    order = by_value[torch.argsort(group_N[by_value], stable=True)]
    size = torch.bincount(group_N)
    finite = torch.bincount(group_N[torch.isfinite(advantage_N)], minlength=len(size))
    rank_in_group = torch.arange(len(order)) - (torch.cumsum(size, 0) - size)[group_N[order]]
    count = finite[group_N[order]]
    kept = (rank_in_group < keep // 2) | ((rank_in_group >= count - keep // 2) & (rank_in_group < count))
    result_N = torch.zeros_like(group_N, dtype=torch.bool)
    result_N[order] = kept & (rank_in_group < count)
    return result_N


def _check(keep: int) -> None:
    if keep < 2 or keep % 2:
        raise ValueError(f"keep = {keep}; wanted an even number of at least 2: half of the best, half of the worst.")


@dataclass(frozen=True)
class KeepExtremes:
    """Trains only the best and worst `keep`/2 rows of each group; the others become NaN, i.e. are left out."""

    keep: int
    """Rows of a group that are trained, an even number: half the best, half the worst."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    min_group_size = 2

    def __post_init__(self) -> None:
        _check(self.keep)

    def __call__(self, table: Table) -> Table:
        if len(table.values) != 1:
            raise ConfigError(
                f"keep_extremes chooses rows by one value, found {len(table.values)} components "
                f"({', '.join(sorted(table.values))}): put the stage {{kind: weighted_sum}} before it."
            )
        group_M = table.key(self.key)
        return table.with_values(
            {k: torch.where(keep_extremes(v, group_M, keep=self.keep), v, torch.nan) for k, v in table.values.items()}
        )
