"""Scores of states to gains of steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.table import Table
from grpo_mm.types import BASELINE, WHOLE_ROW


def gains(score_M: Tensor, row_M: Tensor, position_M: Tensor) -> Tensor:
    """What each state of a row gained over the state before it, [M]; NaN for the first state of a row.

    Args:
        score_M: [M] of a state; NaN makes both gains that it takes part in NaN.
        row_M: [M] integer, the row of a state.
        position_M: [M] integer, its place in the row; need not be consecutive.

    The gains of a row add up to its last score minus its first.

    Source: arXiv:2601.20218 (DenseGRPO), eq. 7: ΔR_t = R_{t-1} - R_t with t the steps that remain.
    """
    order = torch.argsort(position_M, stable=True)
    order = order[torch.argsort(row_M[order], stable=True)]
    score, row = score_M[order], row_M[order]
    gain = torch.full_like(score, torch.nan)
    same = row[1:] == row[:-1]
    gain[1:][same] = (score[1:] - score[:-1])[same]
    result_M = torch.empty_like(gain)
    result_M[order] = gain
    return result_M


@dataclass(frozen=True)
class Gains:
    """Replaces the score after each action by its gain over the score before it; what a row started from is dropped.

    It goes first, before `group_norm` with key [prompt, action].
    """

    min_group_size = 1

    def __call__(self, table: Table) -> Table:
        action_M = table.columns["action"]
        if (action_M == WHOLE_ROW).any() or not (action_M == BASELINE).any():
            raise ConfigError(
                "gains needs a score before and after every action, which this rollout has not: use "
                "engine.tree={kind: clean_images}."
            )
        row_M = group_ids(table.columns["prompt"], table.columns["sample"], table.columns["tag"])
        gained = {name: gains(value_M, row_M, action_M) for name, value_M in table.values.items()}
        lost_M = gains(torch.where(table.columns["failed"], torch.nan, 0.0), row_M, action_M).isnan()
        table = replace(table, values=gained, columns={**table.columns, "failed": lost_M})
        return table.take(torch.nonzero(action_M != BASELINE).flatten())
