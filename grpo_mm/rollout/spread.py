"""How far rewards lie apart: over the batch, and within the groups, where a method finds its signal; and a scorer that answers all the
same, which may be broken."""

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
    """Looks at whether all outputs of a step got one score: that is told of every reward, and stops the run where it cannot be right.

    How many such steps in a row stop the run says the entry's `constant_steps` (0: never), or else the reward's own attribute of that
    name: networks and remote rewards have one, as a network that gives different pictures the same number is broken. Rules that are right
    or wrong are honestly constant for a while (all wrong where it is hard, all right where it is learned), and have none: of them the
    1st, 2nd, 4th, 8th, … constant step is told. Counting begins anew when a run goes on.
    """

    def __init__(self, rewards: Mapping[str, Any]) -> None:
        """rewards: name -> what has a `use`, and perhaps `constant_steps`."""
        self._limits = {name: _limit(scorer) for name, scorer in rewards.items()}
        self._in_a_row = dict.fromkeys(self._limits, 0)
        self._constant = dict.fromkeys(self._limits, 0)
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
                self._constant[name] += 1
                self._tell(name, seen, step)
            seen.clear()

    def _tell(self, name: str, seen: list[float], step: int) -> None:
        said = f"step {step + 1}: the reward {name!r} gave all {len(seen)} outputs the same score, {seen[0]:g}"
        number, (limit, key) = self._in_a_row[name], self._limits[name]
        if limit and number >= limit:
            raise TrainingStopped(
                f"{said}, for the {number}. step in a row. Is the scorer well? If that is what it should say, set rewards.{name}.{key}."
            )
        times = self._constant[name]
        if limit or times & (times - 1) == 0:
            log.warning("%s%s", said, "" if times == 1 else f"; so it was in {times} steps by now")


def _limit(scorer: Any) -> tuple[int | None, str]:
    """(how many steps in a row stop the run, what keeps it from that)."""
    use = scorer.use
    set_here = getattr(scorer, "constant_steps", None)
    if set_here is not None or "constant_steps" not in getattr(type(use), "__dataclass_fields__", {}):
        return getattr(use, "constant_steps", None) if set_here is None else set_here, "constant_steps=0"
    return use.constant_steps, "use.constant_steps=null"
