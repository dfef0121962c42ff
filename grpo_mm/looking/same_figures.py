"""Scores that are one number under several names are shown once, with all of its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.outside import finite_number


def shown_once(names: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names that get a row, in order, each with all names of it: {"score": ("score", "iou/mean", "iou/iou")}.

    The same number: equal to the last bit before and after, of one reward ("quality/score", "quality/sharpness"), or the score and the
    mean of a reward. What stays where it was at a fraction such as 0, 1/2 or 1, as shares of few prompts do, has a row of its own:
    there equal says nothing.
    """
    classes: list[list[str]] = []
    for name in sorted(names, key=lambda n: (n != "score", not n.endswith("/mean"))):
        figures = finite_number(before.get(name)), finite_number(after.get(name))
        same = next(
            (
                known for known in classes
                if (finite_number(before.get(known[0])), finite_number(after.get(known[0]))) == figures
                and any(_related(other, name) for other in known)
            ),
            None,
        )  # fmt: skip
        idle = figures[1] is None or (figures[0] in (None, figures[1]) and _is_coarse(figures[1]))
        if same is None or idle:
            classes.append([name])
        else:
            same.append(name)
    whole = {members[0]: tuple(members) for members in classes}
    return {name: whole[name] for name in names if name in whole}


def _is_coarse(value: float) -> bool:
    """Whether it is so many of at most 64, to what float32 tells."""
    return abs(value) <= 1 and any(abs(value * parts - round(value * parts)) < 1e-6 for parts in range(1, 65))


def _related(known: str, name: str) -> bool:
    if known == "score":
        return name.endswith("/mean") and name.count("/") == 1
    return "/" in name and known.rpartition("/")[0] == name.rpartition("/")[0]
