"""What the length of a list earns beside its items (Rank-GRPO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_ids, group_sum
from grpo_mm.rollout.table import Table


def list_bonus(
    unit_NA: Tensor,
    eos_NA: Tensor,
    *,
    items: int,
    overflow: float = -0.1,
    exact: float = 0.1,
    short: float = -0.1,
) -> Tensor:
    """What tokens earn for the length of their list, [N, A] float64, in units of the advantage.

    Args:
        unit_NA: [N, A] integer, the item of a token, 0 … items-1; `items` for all that overflows, -1 for no item.
        eos_NA: [N, A] bool, the token that ends the list.
        overflow: of every token beyond the last wanted item.
        exact: of the end token of a list of exactly `items`.
        short: of the end token of a shorter list. After an overflow the end token earns 0.

    Source: arXiv:2510.20150 (Rank-GRPO), released code, grade A.
    """
    eos_NA = eos_NA.bool()
    over_NA = (unit_NA >= items) & ~eos_NA
    full_N = ((unit_NA == items - 1) & ~eos_NA).any(1)
    end_N = torch.full(full_N.shape, short, dtype=torch.float64).masked_fill(full_N, exact)
    end_N = end_N.masked_fill(over_NA.any(1), 0.0)
    bonus_NA = torch.zeros(unit_NA.shape, dtype=torch.float64).masked_fill(over_NA, overflow)
    return torch.where(eos_NA, end_N[:, None], bonus_NA)


@dataclass(frozen=True)
class ListShape:
    """Adds `list_bonus` to the tokens of a list; what overflows is thereby trained, though no output credits it.

    It goes last. The rollout declares `unit` [N, A] as `list_bonus` wants it, a separator belonging to the item it ends, and
    `eos` [N, A] bool, where unit is -1. So {kind: clipped_ratio, ratio: unit} has one ratio for each item, one for the
    overflow and one for the end. Rows none of whose items are scored are left out whole.

    Source: arXiv:2510.20150 (Rank-GRPO), grade A. The description leaves open which ratio the end token has; ours is its own.
    """

    items: int = 20
    """Wanted items of a list."""
    overflow: float = -0.1
    """What every token beyond the last wanted item earns, in units of the advantage."""
    exact: float = 0.1
    """What the end token of a list of exactly `items` earns."""
    short: float = -0.1
    """What the end token of a shorter list earns."""

    min_group_size = 1
    columns = frozenset({"unit", "eos"})
    why = "Only lists have ranks: the items of an answer, boxes, spans of time; denoising steps have none."

    def __post_init__(self) -> None:
        if self.items < 1:
            raise ValueError(f"items = {self.items}; wanted at least 1.")

    def __call__(self, table: Table) -> Table:
        _, value_M = table.only_value("list_shape")
        unit_MA = table.columns["unit"]
        if unit_MA.numel() and int(unit_MA.max()) > self.items:
            raise ConfigError(
                f"list_shape: the rollout declares unit {int(unit_MA.max())} in lists of {self.items} items; all tokens "
                f"beyond the last item are unit {self.items}, so that they share one ratio."
            )
        how = dict(items=self.items, overflow=self.overflow, exact=self.exact, short=self.short)
        bonus_MA = list_bonus(unit_MA, table.columns["eos"], **how)
        row_M = group_ids(table.columns["prompt"], table.columns["sample"])
        scored = group_sum(torch.isfinite(value_M).double(), row_M)[row_M] > 0
        first = torch.full((int(row_M.max()) + 1 if len(table) else 0,), len(table))
        first = first.scatter_reduce(0, row_M, torch.arange(len(table)), "amin")
        once_M = torch.zeros(len(table), dtype=torch.bool)
        once_M[first] = True  # A row has an output per item, and one bonus.
        return table.plus_per_action(
            torch.where(once_M[:, None], bonus_MA, 0.0).masked_fill(~scored[:, None], torch.nan)
        )
