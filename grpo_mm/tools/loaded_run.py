"""`load_run`: what a run folder holds as plain Python values; nothing that the folder names is imported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.looking.report.page import read_run
from grpo_mm.looking.samples import Sheet
from grpo_mm.looking.transcripts import Transcript
from grpo_mm.outside import finite_number, place, shown
from grpo_mm.weights import checkpoint


@dataclass(frozen=True)
class SavedCheckpoint:
    """Example: SavedCheckpoint(10, Path("runs/quickstart/checkpoints/step_000010"), is_best=True)."""

    step: int
    path: Path
    is_best: bool


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run as it lies in its folder, finished or not."""

    folder: Path
    config: dict[str, Any]
    """The resolved config, defaults included."""
    metrics: dict[str, list[float]]
    """By name, one number a row of the record, NaN where a row has none; "step" is the first column. Training steps and evaluations
    ("eval/…", first at step 0) are rows of their own. `pandas.DataFrame(run.metrics)` is the record as a table."""
    summary: dict[str, Any]
    """Of a run that came to its end; {} before."""
    samples: tuple[Sheet | Transcript, ...]
    """Pictures (a sheet's `png`, with prompts, rewards and boxes) or texts (`exchanges`), by step."""
    checkpoints: tuple[SavedCheckpoint, ...]
    """By step."""
    damage: tuple[str, ...]
    """What could not be used of the folder, a sentence each."""

    @property
    def name(self) -> str:
        return str(self.summary.get("name") or self.folder.resolve().name)

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one metric, without the rows that do not have it.

        Raises:
            UserError: no row has it.
        """
        column = self.metrics.get(metric)
        if column is None:
            raise UserError(f"{self.folder} logged no {shown(metric)}; there are: {', '.join(sorted(self.metrics))}.")
        found = [(int(step), value) for step, value in zip(self.metrics["step"], column) if not math.isnan(value)]
        return [step for step, _ in found], [value for _, value in found]

    def __repr__(self) -> str:
        state = "finished" if self.summary else "not finished"
        rows = len(self.metrics.get("step", ()))
        return (
            f"<run {self.name!r} in {self.folder}, {state}: {rows} rows of {len(self.metrics)} metrics, "
            f"{len(self.samples)} samples, {len(self.checkpoints)} checkpoints>"
        )


def load_run(folder: str | Path) -> LoadedRun:
    """Reads a run folder.

    Raises:
        UserError: no run lies there.
    """
    folder = place(folder, what="the run")
    found = read_run(folder)
    steps = checkpoint.steps(folder / "checkpoints")
    best = found.summary.get("best_step")
    return LoadedRun(
        folder=folder,
        config=dict(found.config),
        metrics=_columns(found.rows),
        summary=dict(found.summary),
        samples=tuple(sorted([*found.sheets, *found.transcripts], key=lambda one: one.step)),
        checkpoints=tuple(
            SavedCheckpoint(step, folder / "checkpoints" / checkpoint.name_of(step), step == best) for step in steps
        ),
        damage=tuple(found.damage),
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = dict.fromkeys(["step", *(name for row in rows for name in row)]) if rows else {}
    return {name: [_number(row.get(name)) for row in rows] for name in names}


def _number(value: Any) -> float:
    number = finite_number(value)
    return math.nan if number is None else number
