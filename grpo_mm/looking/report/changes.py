"""What changed between two samples of one prompt, and in what order a reader wants to see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.looking.report.words import finite, score


def change_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of the first reward that scored both; None where none did."""
    for name in before:
        was, now = before[name], after.get(name)
        if finite(was) and finite(now):
            by = round(now - was, 3) + 0.0
            text = f"{by:+.3f}".replace("-", "−") if by else "0.000"
            return {"by": by, "text": text, "sign": "up" if by > 0 else "down" if by < 0 else "same"}
    return None


def by_change(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest change first, whichever way it went; what cannot be compared comes last."""
    return sorted(samples, key=lambda one: -abs(one["change"]["by"]) if one["change"] else 1.0)


def counted_changes(samples: Sequence[Mapping[str, Any]]) -> str:
    """ "9 better, 3 worse, 4 unchanged"; "" where nothing is compared."""
    signs = [one["change"]["sign"] for one in samples if one["change"]]
    parts = [
        (sum(s == sign for s in signs), word)
        for sign, word in (("up", "better"), ("down", "worse"), ("same", "unchanged"))
    ]
    return ", ".join(f"{number} {word}" for number, word in parts) if signs else ""


def spread_in_words(rewards: Sequence[Mapping[str, Any]]) -> str:
    """From the lowest to the highest of each reward in a group: "shape 0.530 to 0.533"; bars alone do not tell how far apart."""
    found = []
    for name in dict.fromkeys(name for one in rewards for name in one):
        values = [one[name] for one in rewards if finite(one.get(name))]
        if values:
            low, high = score(min(values)), score(max(values))
            found.append(f"{name} {low} to {high}" if low != high else f"{name} {low}")
    return ", ".join(found)
