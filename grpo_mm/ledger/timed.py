"""Seconds of a step that were measured: by a run that stands in its folder, or by `bench`."""

from __future__ import annotations

import statistics
from pathlib import Path

from grpo_mm.errors import UserError
from grpo_mm.outside import BadJson, parse_json, reason, shown


def timed(folder: Path, bench: Path | None) -> tuple[float | None, str]:
    """(seconds of a step, where they come from); (None, "") where nothing was timed.

    `bench`: what `grpo-mm bench --json` printed, which goes before the run's own metrics.jsonl.

    Raises:
        UserError: `bench` is no such file.
    """
    if bench is not None:
        try:
            found = parse_json(bench.read_text(encoding="utf-8"))
            return float(found["seconds_per_step"]), f"bench of {shown(found['config'])} on {shown(found['device'])}"
        except (BadJson, OSError, UnicodeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"--measured {bench}: {reason(error)}; wanted what `grpo-mm bench CONFIG --json` prints."
            ) from error
    seconds = _of_steps(folder / "metrics.jsonl")
    return (statistics.median(seconds), f"median of {len(seconds)} steps in {folder}") if seconds else (None, "")


def _of_steps(file: Path) -> list[float]:
    """Of the newest steps; the first has warmed up."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()[1:][-100:]
    except (OSError, UnicodeError):
        return []
    found = []
    for line in lines:
        try:
            row = parse_json(line)
        except BadJson:
            continue
        value = row.get("time/step_seconds") if isinstance(row, dict) else None
        if isinstance(value, (int, float)):
            found.append(float(value))
    return found
