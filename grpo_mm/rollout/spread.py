"""How far rewards lie apart: over the batch, and within the groups, where a method finds its signal; and a scorer elsewhere that answers
all the same, which may be broken."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import TrainingStopped
from grpo_mm.rollout.groups import group_count, group_std
from grpo_mm.rollout.table import Table

log = logging.getLogger(__name__)
FEWEST = 2
"""Scores of a step that can be alike."""


def reward_spread(table: Table) -> dict[str, float]:
    """`reward/NAME/std` and `reward/NAME/group_std` of every reward, over the outputs of all ranks that have a score.

    Standard deviations with n - 1, in units of the reward. group_std: the mean over the prompts with at least two scores.
    Demonstrations take no part. NaN where there is too little to compare.
    """
    is_demo_M = table.columns["demo"].bool() if "demo" in table.columns else torch.zeros(len(table), dtype=torch.bool)
    group_M = table.key(("prompt",))
    found = {}
    for name, value_M in table.values.items():
        value_M = value_M.where(~is_demo_M, torch.nan)
        found[f"reward/{name}/std"] = _std(value_M[value_M.isfinite()])
        several_P = group_count(value_M, group_M) > 1
        std_P = group_std(value_M, group_M, ddof=1)[several_P]
        found[f"reward/{name}/group_std"] = float(std_P.mean())
    return found


def _std(value: Tensor) -> float:
    return float(value.std()) if len(value) > 1 else float("nan")


class ConstantScores:
    """Looks at rewards that ask for it by an attribute `constant_steps`: so many steps in a row may not be constant; None: only warns.

    Rules that live here are often constant for many steps (right or wrong), and have none. Counting begins anew when a run goes on.
    """

    def __init__(self, rewards: Mapping[str, Any]) -> None:
        """rewards: name -> what has a `use`."""
        uses = {name: scorer.use for name, scorer in rewards.items()}
        self._limits = {name: use.constant_steps for name, use in uses.items() if hasattr(use, "constant_steps")}
        self._in_a_row = dict.fromkeys(self._limits, 0)
        self._seen: dict[str, list[float]] = {name: [] for name in self._limits}

    def look(self, table: Table) -> None:
        """At the scores of all ranks, demonstrations left out."""
        for name in self._limits:
            value_M = table.values[name]
            if "demo" in table.columns:
                value_M = value_M.where(~table.columns["demo"].bool(), torch.nan)
            self._seen[name] += value_M[value_M.isfinite()].tolist()

    def after(self, step: int) -> None:
        """Warns of what was constant in step `step` (from 0); raises TrainingStopped where that was so too often in a row."""
        for name, seen in self._seen.items():
            is_constant = len(seen) >= FEWEST and len(set(seen)) == 1
            self._in_a_row[name] = self._in_a_row[name] + 1 if is_constant else 0
            if is_constant:
                self._tell(name, seen, step)
            seen.clear()

    def _tell(self, name: str, seen: list[float], step: int) -> None:
        said = f"step {step + 1}: the reward {name!r} gave all {len(seen)} outputs the same score, {seen[0]:g}"
        number, limit = self._in_a_row[name], self._limits[name]
        if limit is not None and number >= limit:
            raise TrainingStopped(
                f"{said}, for the {number}. step in a row. Is the scorer well? If that is what it should say, set "
                f"rewards.{name}.use.constant_steps=null."
            )
        log.warning("%s", said)
