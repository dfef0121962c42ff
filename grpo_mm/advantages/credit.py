"""From the table back to this rank's rows and actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.groups import group_sum
from grpo_mm.table import Table
from grpo_mm.types import Credit, Rollout

Stage = Callable[[Table], Table]
"""A pure step from table to table; `min_group_size` says how many rows a group needs at least."""


def credit(table: Table, stages: Sequence[Stage], *, rollout: Rollout, rank: int) -> Credit:
    """Runs the stages and spreads each output's advantage over the actions it credits.

    An output without an action credits every action of its row; advantages of several outputs that credit the same
    action (granularities, rewards per step) add up. Rows whose value is NaN are left out.

    Source: the credit maps of arXiv:2505.05470 (terminal), arXiv:2510.01982 eq. 9 (sum over granularities).
    """
    for stage in stages:
        table = stage(table)
    if len(table.values) != 1:
        raise ConfigError(
            f"the advantage stages leave {len(table.values)} components ({sorted(table.values)}), wanted one: "
            "add the stage {kind: weighted_sum}."
        )
    (advantage_M,) = table.values.values()
    finite_M = torch.isfinite(advantage_M)
    metrics = {
        "advantage/zero_groups_frac": _zero_groups_frac(advantage_M, table.key(("prompt",))),
        "advantage/abs_mean": float(advantage_M[finite_M].abs().mean()) if finite_M.any() else 0.0,
        "advantage/max": float(advantage_M[finite_M].max()) if finite_M.any() else 0.0,
        "advantage/left_out_frac": float((~finite_M).double().mean()),
    }
    mine_M = table.columns["rank"] == rank
    return Credit(
        *_spread(
            advantage_M[mine_M],
            table.columns["local_row"][mine_M],
            table.columns["action"][mine_M],
            rows=rollout.num_rows,
            actions=rollout.num_actions,
        ),
        metrics=metrics,
    )


def _zero_groups_frac(advantage_M: Tensor, group_M: Tensor) -> float:
    """Share of groups, among those with a scored row, in which every advantage is 0: they teach nothing."""
    finite_M = torch.isfinite(advantage_M)
    scored = group_sum(finite_M.double(), group_M) > 0
    teaching = group_sum((finite_M & (advantage_M != 0)).double(), group_M) > 0
    return float((scored & ~teaching).sum() / scored.sum().clamp_min(1))


def _spread(advantage_M: Tensor, row_M: Tensor, action_M: Tensor, *, rows: int, actions: int) -> tuple[Tensor, Tensor]:
    finite_M = torch.isfinite(advantage_M)
    value_M = advantage_M.where(finite_M, 0)
    whole_M = action_M < 0
    row_N = value_M.new_zeros(rows).index_add_(0, row_M[whole_M], value_M[whole_M])
    advantage_NA = row_N[:, None].repeat(1, actions)
    cell_M = (row_M * actions + action_M)[~whole_M]
    advantage_NA.view(-1).index_add_(0, cell_M, value_M[~whole_M])
    keep_N = torch.zeros(rows, dtype=torch.bool)
    keep_N[row_M[finite_M]] = True
    return advantage_NA, keep_N
