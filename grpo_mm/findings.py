"""What an examination of a policy and its sampler finds: a figure beside its bound, and what is usually the cause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Finding:
    """One comparison. Example: Finding("first token", 0.31, 1e-4, "the engine samples with weights of before the last update")."""

    name: str
    """What was compared."""
    figure: float
    """How far apart it is; NaN where it could not be compared."""
    bound: float
    """Up to which it is the same."""
    cause: str = ""
    """Of a difference, as far as it was found; else what was compared with what."""
    at_least: bool = False
    """The figure is a probability, and has to be at least the bound."""
    asked: bool = True
    """Whether a difference is a fault. What only informs has none."""

    @property
    def differs(self) -> bool:
        within = self.figure >= self.bound if self.at_least else self.figure <= self.bound
        return self.asked and not within and not math.isnan(self.figure)


def row(name: str, figure: float, bound: float, compared: str, cause: str = "") -> Finding:
    """A finding with what was compared, and after it the usual cause if it differs."""
    found = Finding(name, figure, bound, compared)
    return replace(found, cause=f"{compared}: {cause}") if found.differs and cause else found


def first_difference(findings: Sequence[Finding]) -> Finding | None:
    """The first that differs: what comes after it follows from it."""
    return next((finding for finding in findings if finding.differs), None)


def as_table(findings: Sequence[Finding]) -> str:
    """A line each: verdict, name, figure, bound, words."""
    rows = [
        (
            "DIFFERS" if f.differs else "–" if math.isnan(f.figure) else "ok" if f.asked else "note",
            f.name,
            "" if math.isnan(f.figure) else f"{f.figure:.2g}",
            "" if not f.asked or math.isnan(f.figure) else f"{'≥' if f.at_least else '≤'} {f.bound:.2g}",
            f.cause,
        )
        for f in findings
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[4]]).rstrip() for row in rows)
