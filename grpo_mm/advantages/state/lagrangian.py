"""Quality scores as constraints: their normalised advantages are weighted by multipliers that the run learns (Faithful GRPO)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import group_norm
from grpo_mm.advantages.combination.combine import weighted_sum
from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.advantages.shared.signals import target_of
from grpo_mm.errors import CheckpointError, ConfigError
from grpo_mm.identity import FREE, REFUSED
from grpo_mm.rollout.table import Table

log = logging.getLogger(__name__)


def dual_step(multiplier: float, *, score: float, threshold: float, rate: float, highest: float) -> float:
    """λ ← clip(λ + rate · (threshold - score), 0, highest): up while the constraint is missed.

    Source: arXiv:2604.08476 (Faithful GRPO), section on the constrained problem. Grade B.
    """
    return min(highest, max(0.0, multiplier + rate * (threshold - score)))


Baseline = Literal["group", "batch", "threshold"]


@dataclass(frozen=True)
class Constraint:
    """What the mean of a reward over the batch must reach."""

    threshold: float
    when: str | None = None
    """Only rows on which this reward is above 0 count: without it, wrong but consistent answers would do. Rows without a
    score, as where a judge had nothing to judge or failed, never count."""
    start: float = 1.0
    """Of the multiplier."""
    baseline: Baseline = "group"
    """group: the score compared within its group and divided by the spread, as published; a group whose scores are equal
    earns nothing. batch: score - mean over the batch. threshold: score - threshold. The last two tell a group that misses
    the constraint as a whole from one that meets it; they are not divided by a spread, and are no part of the paper."""

    def __post_init__(self) -> None:
        if self.baseline not in get_args(Baseline):
            raise ConfigError(f"baseline = {self.baseline!r}; wanted one of {', '.join(get_args(Baseline))}.")


@dataclass(frozen=True)
class Lagrangian:
    """One component: the normalised task advantage + Σ_k λ_k · the normalised advantage of constraint k.

    The task is the weighted sum of the rewards that are no constraint. Whiten the result: `group_norm` with key [] after it.
    The multipliers of a step are those from before its batch; after the updates each takes one `dual_step`, the same on
    every rank, and is saved with the run.

    Source: arXiv:2604.08476 (Faithful GRPO). Grade B. Uncertain: whether the dual step comes before or after the advantages
    (here after), and how rows that a constraint does not apply to enter its advantage (`fill`). No division by 1 + Σλ.
    Trap: a constraint that is equal within a group has advantage 0 there, whatever its multiplier; a `baseline` of batch or
    threshold changes that.
    """

    constraints: dict[str, Constraint] = field(metadata=REFUSED)
    rate: float = 0.05
    highest: float = 5.0
    least: int = 8
    """Rows that a constraint must apply to in a batch; with fewer its multiplier stays."""
    fill: Literal["masked", "zero"] = "masked"
    """masked: compared among the rows it applies to, the others 0. zero: the others have the value 0, which rewards
    accuracy a second time."""
    ddof: Literal[0, 1] = 1
    eps: float = 1e-4
    key: tuple[str, ...] = ("prompt",)
    warn_after: int = field(default=100, metadata=FREE)
    """Steps at the highest value after which the log says that the threshold may be out of reach."""
    state: dict[str, dict[str, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    min_group_size = 2

    def __post_init__(self) -> None:
        if not self.constraints or self.rate < 0 or self.highest <= 0 or self.least < 1:
            raise ValueError(
                f"{len(self.constraints)} constraints, rate = {self.rate}, highest = {self.highest}, least = {self.least}; "
                "wanted some, 0 or more, above 0, and 1 or more."
            )
        not_below_zero(eps=self.eps)
        for name, constraint in self.constraints.items():
            start = min(self.highest, max(0.0, constraint.start))
            self.state[name] = {"multiplier": start, "score": float("nan"), "applicable": 0.0, "steps_at_cap": 0.0}

    @property
    def optional_rewards(self) -> frozenset[str]:
        """Rewards without whose score a row still counts: a judge that is down stops no run."""
        return frozenset(self.constraints)

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)

        constraint_M = {name: self._applied(table, name) for name in self.constraints}
        total_M = group_norm(self._task(table), group_M, ddof=self.ddof, eps=self.eps)
        for name, value_M in constraint_M.items():
            filled_M = value_M.nan_to_num() if self.fill == "zero" else value_M
            advantage_M = self._advantage(filled_M, group_M, self.constraints[name])
            total_M = total_M + self.state[name]["multiplier"] * advantage_M.nan_to_num()
        return table.with_values({"total": total_M})

    def _advantage(self, value_M: Tensor, group_M: Tensor, constraint: Constraint) -> Tensor:
        """Of a constraint, before its multiplier, [M]; NaN where it does not apply."""
        if constraint.baseline == "group":
            return group_norm(value_M, group_M, ddof=self.ddof, eps=self.eps)
        return value_M - (value_M.nanmean() if constraint.baseline == "batch" else constraint.threshold)

    def update(self, table: Table) -> None:
        """The dual step, on the rewards of a batch."""
        for name, constraint in self.constraints.items():
            value_M, kept = self._applied(table, name), self.state[name]
            finite_M = torch.isfinite(value_M)
            kept["applicable"] = float(finite_M.sum())
            if kept["applicable"] < self.least:
                continue
            kept["score"] = float(value_M[finite_M].mean())
            kept["multiplier"] = dual_step(
                kept["multiplier"],
                score=kept["score"],
                threshold=constraint.threshold,
                rate=self.rate,
                highest=self.highest,
            )
            kept["steps_at_cap"] = kept["steps_at_cap"] + 1 if kept["multiplier"] >= self.highest else 0.0
            if kept["steps_at_cap"] == self.warn_after:
                log.warning(
                    "constraint %r has been at its highest multiplier %g for %d steps: its score is %.3f, wanted %g. The "
                    "threshold may be out of reach.",
                    name, self.highest, self.warn_after, kept["score"], constraint.threshold,
                )  # fmt: skip

    def metrics(self) -> dict[str, float]:
        """The multipliers in force, and the batch scores and counts that the last dual step saw."""
        return {
            f"constraint/{name}/{what}": self.state[name][what]
            for name in self.constraints
            for what in ("multiplier", "score", "applicable")
            if self.state[name][what] == self.state[name][what]
        }

    def state_dict(self) -> dict[str, Any]:
        """Without the scores that are not there yet: JSON has no NaN."""
        return {name: {k: v for k, v in kept.items() if v == v} for name, kept in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != set(self.constraints):
            raise CheckpointError(
                f"saved multipliers of {sorted(state)}, the config constrains {sorted(self.constraints)}."
            )
        for name, kept in state.items():
            absent = sorted({"multiplier", "applicable", "steps_at_cap"} - set(kept))
            if absent:
                raise CheckpointError(f"the saved state of constraint {name!r} has no {absent[0]!r}.")
            self.state[name] = {"score": float("nan")} | {k: float(v) for k, v in kept.items()}
            # The config may have lowered the highest value since.
            self.state[name]["multiplier"] = min(self.highest, self.state[name]["multiplier"])

    def _task(self, table: Table) -> Tensor:
        """The weighted task reward; NaN where one that applies gave no score."""
        names = [name for name in table.values if name not in self.constraints]
        if not names:
            raise ConfigError(
                f"every reward ({', '.join(table.values)}) is a constraint; wanted at least one that is not."
            )
        value_MK = torch.stack([table.values[name] for name in names], dim=1)
        total_M = weighted_sum(value_MK, [table.weights.get(name, 1.0) for name in names])
        # Of constraints alone a row does not fail (`optional_rewards`); a task reward that failed leaves it out.
        lost_M = table.columns["failed"] & torch.isnan(value_MK).any(dim=1)
        return torch.where(lost_M, torch.nan, total_M)

    def _applied(self, table: Table, name: str) -> Tensor:
        """The constraint's score where it applies, NaN elsewhere, [M]."""
        value_M, when = table.values[target_of(table, name, stage="lagrangian")], self.constraints[name].when
        if when is None:
            return value_M
        return torch.where(table.values[target_of(table, when, stage="lagrangian")] > 0, value_M, torch.nan)
