"""What is true of a prompt, as words beside what was answered, and how far an answer agrees with it.

The agreement is nobody's reward: it is measured the same way in every run, so that a reward which pays for something else is
seen. It knows texts and spans; what it cannot compare it leaves out.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.looking.text_statistics import said_in
from grpo_mm.outside import plain
from grpo_mm.types import Prompt

ANSWERS = (
    "answer",
    "answers",
    "solution",
    "label",
    "gt",
    "ground_truth",
    "truth",
    "target",
    "reference",
    "caption",
    "completion",
)
"""Keys of a target that hold the answer, most telling first; one that is no mapping is the answer itself."""
ASKED = ("text", "texts", "include", "things", "words")
"""Keys that hold what a picture is to show."""
LONGEST, MOST = 400, 12
_SIGNS = re.compile(r"[^\w.+%-]+")


def truth_of(prompt: Prompt) -> str | None:
    """In words: the right answer or answers, spans, boxes, what a picture is to show; None where nothing is known."""
    target = prompt.target
    if not isinstance(target, Mapping):
        return None if target is None else _words(target)
    parts = [words for key in ANSWERS if (words := _words(target.get(key)))][:1]
    choices = target.get("choices") or target.get("options")
    if (
        parts
        and isinstance(choices, Sequence)
        and not isinstance(choices, str)
        and re.fullmatch(r"\(?[A-Z]\)?", parts[0])
    ):
        place = ord(parts[0].strip("()")) - ord("A")
        parts[0] += f": {_words(choices[place])}" if place < len(choices) else ""
    if spans := _lists(target.get("spans"), 2):
        parts.append(", ".join(f"{start:g} to {end:g} s" for start, end in spans[:MOST]))
    if boxes := _lists(target.get("boxes"), 4):
        names = [*(target.get("box_names") or ()), *[""] * len(boxes)]
        parts.append(
            ", ".join(
                f"{plain(str(n), 60)} {[round(x, 1) for x in box]}".strip() for box, n in zip(boxes[:MOST], names)
            )
        )
    parts += [] if parts else [words for key in ASKED if (words := _words(target.get(key)))][:1]
    return "; ".join(parts)[:LONGEST] or None


def agreement(prompt: Prompt, text: str, spans: Sequence[Sequence[float]] = ()) -> float:
    """How far an answer agrees with the truth, 0 to 1; NaN where there is none that can be compared.

    A text: 1 where the answer element (without one, what follows the thinking) begins with one of the right answers, or says it
    within 40 characters, a single letter at once; case, marks and blanks do not matter. Spans: intersection over union of their unions, `spans` being those of the
    answer.
    """
    target = prompt.target
    true_spans = _lists(target.get("spans"), 2) if isinstance(target, Mapping) else []
    if true_spans:
        return _span_iou(spans, true_spans)
    right = [_folded(one) for one in _right_answers(target)]
    if not any(right):
        return math.nan
    said = f" {_folded(said_in(text) or '')} "
    return float(any(one and said[: len(one) + (42 if len(one) > 1 else 2)].find(f" {one} ") >= 0 for one in right))


def _right_answers(target: Any) -> list[str]:
    value = (
        next((target[key] for key in ANSWERS if target.get(key) is not None), None)
        if isinstance(target, Mapping)
        else target
    )
    some = value if isinstance(value, list | tuple) else [value]
    return [str(one) for one in some if isinstance(one, str | int | float)]


def _folded(text: str) -> str:
    return " ".join(
        _SIGNS.sub(" ", unicodedata.normalize("NFKC", text[:4000]).casefold()).replace(". ", " ").split()
    ).strip(".")


def _span_iou(spans: Sequence[Sequence[float]], true_spans: Sequence[Sequence[float]]) -> float:
    said, true = _union(spans), _union(true_spans)
    both = sum(max(0.0, min(b, d) - max(a, c)) for a, b in said for c, d in true)
    either = sum(b - a for a, b in said) + sum(b - a for a, b in true) - both
    return both / either if either > 0 else 0.0


def _union(spans: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for start, end in sorted((s, e) for s, e in spans if math.isfinite(s) and math.isfinite(e) and s < e):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _lists(found: Any, length: int) -> list[list[float]]:
    """The rows of a list that are so many finite numbers."""
    rows = found if isinstance(found, list | tuple) else ()
    return [
        [float(x) for x in row]
        for row in rows
        if isinstance(row, list | tuple)
        and len(row) == length
        and all(isinstance(x, int | float) and math.isfinite(x) for x in row)
    ]


def _words(value: Any) -> str:
    if value is None or isinstance(value, bytes) or hasattr(value, "shape"):
        return ""
    if isinstance(value, Mapping):
        return plain(" ".join(filter(None, map(_words, value.values()))), LONGEST)
    if isinstance(value, list | tuple):
        joined = " or " if all(isinstance(one, str | int | float) for one in value) else ", "
        return plain(joined.join(filter(None, map(_words, value[:MOST]))), LONGEST)
    return plain(str(value), LONGEST)
