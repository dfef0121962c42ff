"""How well do two judges agree? Cohen's kappa, to calibrate a judge against a small set labelled by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Example: Agreement(kappa=0.4, share=0.7, rows=50, left_out=2, pairs={("yes", "yes"): 20, ("yes", "no"): 5, …})."""

    kappa: float
    """(share - chance)/(1 - chance): 1 full agreement, 0 that of chance; NaN where chance alone agrees always, or
    nothing was judged by both."""
    share: float
    """Of the rows judged by both, those with the same verdict; NaN without any."""
    rows: int
    """Judged by both."""
    left_out: int
    """Without a valid verdict (None) of one or both."""
    pairs: dict[tuple[Hashable, Hashable], int]
    """(first judge's verdict, second judge's) → how often."""


def agreement(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> Agreement:
    """Cohen's kappa of two judges on the same rows; NaN counts like None.

    Raises:
        ValueError: not as many verdicts of one as of the other.

    Source: Cohen, A coefficient of agreement for nominal scales (1960), unweighted.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} verdicts; wanted two on each row.")
    both = [(a, b) for a, b in zip(first, second) if not (_missing(a) or _missing(b))]
    rows = len(both)
    if not rows:
        return Agreement(math.nan, math.nan, 0, len(first), {})
    share = sum(a == b for a, b in both) / rows
    ours, theirs = Counter(a for a, _ in both), Counter(b for _, b in both)
    # Whole numbers, so that two judges who always say the same are told from a rounding error.
    by_chance, squared = sum(ours[word] * theirs[word] for word in ours), rows * rows
    kappa = math.nan if by_chance == squared else (share - by_chance / squared) / (1 - by_chance / squared)
    return Agreement(kappa, share, rows, len(first) - rows, dict(Counter(both)))


def _missing(verdict: Hashable | None) -> bool:
    return verdict is None or verdict != verdict
