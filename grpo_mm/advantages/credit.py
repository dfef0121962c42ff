"""From the table back to this rank's rows and actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_sum
from grpo_mm.rollout.table import PER_ACTION, TRAINED, Table
from grpo_mm.types import BASELINE, WHOLE_ROW, Credit, Rollout

Stage = Callable[[Table], Table]
"""A pure step from table to table; `min_group_size` says how many rows a group needs at least."""


def credit(table: Table, stages: Sequence[Stage], *, rollout: Rollout, rank: int) -> Credit:
    """Runs the stages and spreads each output's advantage over the actions it credits.

    An output of a whole row credits every action of it; advantages of several outputs that credit the same action
    (granularities, rewards per step) add up. Actions one of whose outputs is NaN are left out, and those that a stage
    marked in the column `trained` as not to be.

    The column `per_action` [M, A] adds to single actions what they earn beside that (a prefix tree, a bonus on the last
    token); it also trains actions that no output credits. An entry of NaN leaves its action out.

    Source: the credit maps of arXiv:2505.05470 (terminal), arXiv:2510.01982 eq. 9 (sum over granularities).
    """
    before = set(table.columns)
    for stage in stages:
        table = stage(table)
    check_stages(table)
    if TRAINED in table.columns:
        table = table.with_values(
            {k: torch.where(table.columns[TRAINED], v, torch.nan) for k, v in table.values.items()}
        )
    (advantage_M,) = table.values.values()
    finite_M = torch.isfinite(advantage_M)
    metrics = {
        "advantage/zero_groups_frac": _zero_groups_frac(advantage_M, table.key(("prompt", "action"))),
        "advantage/abs_mean": float(advantage_M[finite_M].abs().mean()) if finite_M.any() else 0.0,
        "advantage/max": float(advantage_M[finite_M].max()) if finite_M.any() else 0.0,
        "advantage/left_out_frac": float((~finite_M).double().mean()),
    }
    made = [name for name in table.columns if name not in before | {TRAINED, PER_ACTION}]
    mine = _of_rank(table, rank, ("local_row", "action", *made, *({PER_ACTION} & table.columns.keys())))
    (advantage_M,) = mine.values.values()
    shape = (rollout.num_rows, rollout.num_actions)
    count_NA = _spread(torch.ones_like(advantage_M), mine, rollout)
    lost_NA = _spread((~torch.isfinite(advantage_M)).double(), mine, rollout)
    columns = {
        name: (_spread(mine.columns[name].double(), mine, rollout) / count_NA.clamp_min(1)).expand(shape).contiguous()
        for name in made
    }
    advantage_NA = _spread(advantage_M.nan_to_num(), mine, rollout).expand(shape)
    credited_NA, kept_NA = count_NA > 0, lost_NA == 0
    if PER_ACTION in mine.columns:
        extra_MA, row_M = mine.columns[PER_ACTION].double(), mine.columns["local_row"]
        advantage_NA = advantage_NA.index_add(0, row_M, extra_MA.nan_to_num())
        credited_NA = credited_NA | torch.zeros(shape[0], 1, dtype=torch.bool).index_fill(0, row_M, True)
        kept_NA = kept_NA & ~torch.zeros(shape, dtype=torch.bool).index_add(0, row_M, extra_MA.isnan())
    keep_NA = (credited_NA & kept_NA).expand(shape).contiguous()
    return Credit(advantage_NA.contiguous(), keep_NA=keep_NA, metrics=metrics, columns=columns)


def check_stages(table: Table) -> None:
    """Raises ConfigError unless the stages left one component, and nothing that only gains can use."""
    if len(table.values) != 1:
        raise ConfigError(
            f"the advantage stages leave {len(table.values)} components ({', '.join(sorted(table.values))}), wanted one: "
            "add the stage {kind: weighted_sum}."
        )
    if "edge" in table.columns:
        raise ConfigError(
            "the rollout is a tree, whose shared steps would be credited with their first leaf only: add the stage "
            "{kind: tree_backup}."
        )
    if (table.columns["action"] == BASELINE).any():
        raise ConfigError(
            "the rollout scores where each row started, which credits no action: add the stage {kind: gains}, or choose "
            "another engine.tree."
        )


def _zero_groups_frac(advantage_M: Tensor, group_M: Tensor) -> float:
    """Share of groups, among those with a scored row, in which every advantage is 0: they teach nothing."""
    finite_M = torch.isfinite(advantage_M)
    scored = group_sum(finite_M.double(), group_M) > 0
    teaching = group_sum((finite_M & (advantage_M != 0)).double(), group_M) > 0
    return float((scored & ~teaching).sum() / scored.sum().clamp_min(1))


def _of_rank(table: Table, rank: int, names: Sequence[str]) -> Table:
    """The rows of a rank with only the named columns: those of [M, A] are long to copy."""
    table = replace(table, columns={name: table.columns[name] for name in ("rank", *names)})
    mine_M = table.columns["rank"] == rank
    return table if mine_M.all() else table.take(torch.nonzero(mine_M).flatten())


def _spread(value_M: Tensor, table: Table, rollout: Rollout) -> Tensor:
    """Sums of values over the (row, action) that each table row credits, [N, A]; [N, 1] if all credit whole rows.

    Where the rollout declares a column `unit`, outputs credit units of a row (ranks of a list, turns), each of which is some
    actions.
    """
    row_M, action_M = table.columns["local_row"], table.columns["action"]
    whole_M = action_M == WHOLE_ROW
    row_N = value_M.new_zeros(rollout.num_rows).index_add_(0, row_M[whole_M], value_M[whole_M])
    if whole_M.all():
        return row_N[:, None]
    unit_NA = rollout.columns.get("unit")
    units = rollout.num_actions
    if unit_NA is not None:
        # An output may credit a unit that no action belongs to: the twentieth item of a list of twelve.
        units = 1 + max([0, *(int(named.max()) for named in (unit_NA, action_M) if named.numel())])
    total_NU = row_N[:, None].repeat(1, units)
    cell_M = (row_M * units + action_M)[~whole_M]
    total_NU.view(-1).index_add_(0, cell_M, value_M[~whole_M])
    if unit_NA is None:
        return total_NU
    unit_NA = unit_NA.cpu()
    return torch.where(unit_NA < 0, row_N[:, None], total_NU.gather(1, unit_NA.clamp_min(0)))
