"""A run's own files, read with care: they may be cut, edited, of another tool, or from elsewhere.

What cannot be used is named in a list that the reader hands in, and the rest is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.outside import finite_number, plain, reason, shown

LARGEST_JSON = 32 * 2**20
LARGEST_STEP = 10**12
LARGEST_NUMBER = 1e300
"""Beyond it the difference of two numbers may be infinite."""
MAX_NAMED = 8
MAX_NAME = 120


def is_own_file(path: Path, folder: Path) -> bool:
    """Whether it is a regular file that lies in the folder, and no link leads out of it."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except OSError:
        return False


def own_bytes(path: Path, folder: Path, damage: list[str], *, most: int | None = LARGEST_JSON) -> bytes:
    """What the file holds; nothing of one that is missing, leads elsewhere, cannot be read or is larger than `most` bytes."""
    if not path.is_symlink() and not path.exists():
        return b""
    name = _name(path, folder)
    if not is_own_file(path, folder):
        damage.append(f"{name} is no file of this folder: it was not followed")
        return b""
    try:
        size = path.stat().st_size
        if most is not None and size > most:
            damage.append(f"{name} has {size} bytes, more than the {most} that are read")
            return b""
        return path.read_bytes()
    except OSError as error:
        damage.append(f"{name} cannot be read ({reason(error)})")
        return b""


SAMPLER = "sampler.json"
"""Of a run folder: how what draws was compared with what trains."""
SCORERS = "scorers.json"
"""Of a run folder: whether its scorers gave the recorded scores for their golden pictures."""


def json_object(path: Path, folder: Path, damage: list[str]) -> dict[str, Any]:
    """A file that holds one JSON object; an empty one if it is missing or damaged."""
    data = own_bytes(path, folder, damage)
    if not data.strip():
        if path.is_file() and not any(_name(path, folder) in said for said in damage):
            damage.append(f"{_name(path, folder)} is empty")
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        damage.append(f"{_name(path, folder)} is damaged ({reason(error)})")
        return {}
    if not isinstance(found, dict):
        damage.append(f"{_name(path, folder)} is damaged: it holds {shown(found, 40)}")
        return {}
    return found


def json_rows(path: Path, damage: list[str], *, folder: Path | None = None) -> list[dict[str, Any]]:
    """The lines of a record: JSON objects with a step. A torn last line, which a killed run leaves, is no damage."""
    data = own_bytes(path, folder or path.parent, damage, most=None)
    lines = data.split(b"\n")
    rows, bad = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
            if number == len(lines) and line.startswith(b"{") and not (b"\0" in line or b"\r" in line):
                continue
        if isinstance(row, dict) and is_step(row.get("step")):
            rows.append(row)
        else:
            bad.append(number)
    if bad:
        named = ", ".join(map(str, bad[:MAX_NAMED])) + (", …" if len(bad) > MAX_NAMED else "")
        damage.append(
            f"{_name(path, folder or path.parent)}: {len(bad)} of {len(rows) + len(bad)} lines cannot be read "
            f"(line {named}); they were skipped"
        )
    return rows


def tell_of_steps(rows: Sequence[Mapping[str, Any]], name: str, damage: list[str]) -> None:
    """Names steps of training that are missing in a record, or stand there more than once."""
    steps = [row["step"] for row in rows if row["step"] and "eval/score" not in row]
    once, last = set(steps), max(steps, default=0)
    if len(once) < len(steps):
        seen: set[int] = set()
        again = next(step for step in steps if step in seen or seen.add(step))
        damage.append(
            f"{name}: {len(steps) - len(once)} lines repeat a step (the first is step {again}); all were drawn"
        )
    if len(once) < last:
        absent = next(step for step in range(1, last) if step not in once)
        damage.append(f"{name}: {last - len(once)} of {last} steps have no line (the first is step {absent})")


def is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_STEP


def number_or_none(value: Any) -> float | None:
    """The number if arithmetic with it stays finite."""
    number = finite_number(value)
    return None if number is None or abs(number) > LARGEST_NUMBER else number


def numbers(found: Any) -> dict[str, float | None]:
    """The entries of a mapping that are numbers or None, by bounded names.

    Raises:
        ValueError: it is no mapping, or holds other things.
    """
    if not isinstance(found, Mapping) or len(found) > 10_000:
        raise ValueError(f"{shown(found, 40)} is no table of numbers")
    bad = [value for value in found.values() if value is not None and number_or_none(value) is None]
    if bad:
        raise ValueError(f"{shown(bad[0], 40)} is no finite number")
    return {plain(str(name), MAX_NAME): value for name, value in found.items()}


def _text_or_none(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{shown(value, 40)} is no text")
    return None if value is None else plain(value, 400)


def _step(value: Any) -> int:
    if not is_step(value):
        raise ValueError(f"{shown(value, 40)} is no number of steps")
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value, 40)} is no table")
    return value


def _text(value: Any) -> str:
    found = _text_or_none(value)
    if not found:
        raise ValueError("there is no text")
    return found


SUMMARY: Mapping[str, Callable[[Any], Any]] = {
    "name": _text, "steps": _step, "stopped_early": _text_or_none, "eval_before": numbers, "eval_after": numbers,
    "seconds": numbers, "network_calls": numbers, "product": _text, "versions": _table,
}  # fmt: skip


def summary_of(path: Path, damage: list[str]) -> dict[str, Any]:
    """summary.json, each entry only if it is what a run writes there; others that it may have stay as they are."""
    found = json_object(path, path.parent, damage)
    whole = dict(found)
    for name, check in SUMMARY.items():
        if name in found:
            try:
                whole[name] = check(found[name])
            except ValueError as error:
                del whole[name]
                damage.append(f"{path.name}: {name} is damaged: {error}")
    return whole


def _name(path: Path, folder: Path) -> str:
    return plain(str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name, MAX_NAME)
