"""held_out.jsonl: the held-out scores of every evaluation, prompt by prompt, from which standard errors are computed.

A line is {"step": 0, "ids": ["scenes/0", …], "values": {"score": [0.5, null, …], …}}; names are those of the record without eval/.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.looking.own_files import json_rows, number_or_none

NAME = "held_out.jsonl"
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
    2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % points of Student's t with 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class Evaluation:
    """One line. Example: Evaluation(0, ("a", "b"), {"score": (0.5, None)})."""

    step: int
    ids: Sequence[str]
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts. Example: Estimate(0.5, 0.02, 384)."""

    mean: float
    error: float | None
    """Standard error of the mean; None of a single prompt."""
    n: int
    """Prompts."""

    @property
    def within_error(self) -> bool:
        """Whether 0 lies in its 95 % interval (Student's t with n - 1 degrees of freedom); so it does of a single prompt."""
        if self.error is None:
            return True
        return abs(self.mean) <= t_95(self.n - 1) * self.error


def t_95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t."""
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    return 1.95996 + 2.4 / freedom  # within 0.002 of the exact point from here on


def append(path: Path, *, step: int, ids: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> None:
    """Adds a line and flushes it."""
    line = json.dumps({"step": step, "ids": list(ids), "values": values}, ensure_ascii=False, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, damage: list[str] | None = None) -> list[Evaluation]:
    """All whole lines, by step, of several at a step the last; others are named in `damage`."""
    said: list[str] = [] if damage is None else damage
    found, bad = {}, 0
    for row in json_rows(path, said):
        whole = _evaluation(row)
        bad += whole is None
        if whole is not None:
            found[whole.step] = whole
    if bad:
        said.append(f"{path.name}: {bad} lines hold no scores by prompt; they were skipped")
    return [found[step] for step in sorted(found)]


def cut_back(path: Path, *, step: int, without_eval: bool) -> None:
    """Keeps the lines up to `step`, or before it: a resumed run writes the later ones again."""
    kept = [
        json.dumps(row, ensure_ascii=False) + "\n"
        for row in (json_rows(path, []) if path.is_file() else ())
        if row["step"] <= step - without_eval
    ]
    if not kept:
        path.unlink(missing_ok=True)
        return
    aside = path.with_suffix(".writing")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)


def mean_of(evaluation: Evaluation, metric: str) -> Estimate | None:
    """Over the prompts that have a value; None if none has."""
    return _estimate([value for value in evaluation.values.get(metric, ()) if value is not None])


def paired(before: Evaluation, after: Evaluation, metric: str) -> Estimate | None:
    """The mean difference of the prompts that both evaluations have a value of; None if there is none.

    The error is that of the paired differences: what makes one prompt harder than another does not count.
    """
    was, now = before.values.get(metric, ()), after.values.get(metric, ())
    if list(before.ids) == list(after.ids):
        both = list(zip(was, now))
    else:  # the held-out prompts were changed on the way
        then = dict(zip(after.ids, now))
        both = [(value, then[key]) for key, value in zip(before.ids, was) if key in then]
    return _estimate([now - was for was, now in both if was is not None and now is not None])


def _estimate(values: Sequence[float]) -> Estimate | None:
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(math.fsum(values) / len(values), error, len(values))


def _evaluation(row: Mapping[str, Any]) -> Evaluation | None:
    ids, values = row.get("ids"), row.get("values")
    if not isinstance(ids, list) or not isinstance(values, dict) or not all(isinstance(one, str) for one in ids):
        return None
    for column in values.values():
        if not isinstance(column, list) or len(column) != len(ids):
            return None
        if any(value is not None and number_or_none(value) is None for value in column):
            return None
    return Evaluation(row["step"], ids, values)
