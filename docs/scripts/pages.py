"""What the scripts that write a page share: seeds, means with their errors, tables before and after, notes by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
QUICKSTART = DOCS.parent / "configs/quickstart"
SEEDS = (0, 1, 2)
Summary = Mapping[str, Any]
"""What `grpo_mm.train` gives."""


def mean(values: Sequence[float], *, digits: int = 3) -> str:
    """Mean and standard error of one value a seed."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def rounded(values: Sequence[float]) -> str:
    """The mean as a whole number."""
    return f"{statistics.mean(values):,.0f}"


def before_and_after(
    rows: Mapping[str, str],
    plain: Sequence[Summary],
    control: Sequence[Summary],
    of: Callable[[Mapping[str, float], str], float],
) -> list[str]:
    """A table with a row for each of `rows` (score -> words); `of` takes a score from the figures of an evaluation."""
    lines = ["| | before | after | difference | control: difference |", "| --- | --- | --- | --- | --- |"]
    for name, words in rows.items():
        before, after = ([of(s[f"eval_{when}"], name) for s in plain] for when in ("before", "after"))
        gain = [a - b for a, b in zip(after, before, strict=True)]
        other = [of(s["eval_after"], name) - of(s["eval_before"], name) for s in control]
        lines.append(f"| {words} | {mean(before)} | {mean(after)} | {mean(gain)} | {mean(other)} |")
    return lines


def by_seed(
    name: str, plain: Sequence[Summary], control: Sequence[Summary], of: Callable[[Mapping[str, float], str], float]
) -> list[str]:
    """A table with a row for each seed: one score, and the seconds of the run."""
    lines = ["", "| seed | before | after | difference | control | training, s | evaluation, s |", "| --- " * 7 + "|"]
    for seed, a, b in zip(SEEDS, plain, control, strict=True):
        before, after = of(a["eval_before"], name), of(a["eval_after"], name)
        other = of(b["eval_after"], name) - of(b["eval_before"], name)
        seconds = f"{a['seconds']['train']:.0f} | {a['seconds']['eval']:.0f}"
        lines.append(f"| {seed} | {before:.3f} | {after:.3f} | {after - before:+.3f} | {other:+.3f} | {seconds} |")
    return lines


def notes(page: str) -> list[str]:
    """What stands below a page by hand, in PAGE_notes.md."""
    file = DOCS / f"{page}_notes.md"
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def write(page: str, lines: Sequence[str]) -> None:
    (DOCS / f"{page}.md").write_text("\n".join(lines), encoding="utf-8")
