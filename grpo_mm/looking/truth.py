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


def answer_of(text: str) -> str:
    """What a text answers, as it is compared with others: without thinking, tags, case and marks; "" where that is nothing."""
    return _folded(said_in(text) or "")


def box_agreement(boxes: Sequence[Sequence[float]], true_boxes: Sequence[Sequence[float]]) -> float:
    """The intersection over union of each true box with the box that fits it best, on average; 0 without a box, NaN without a true one.

    A box more than there are true ones takes its share away.
    """
    if not true_boxes:
        return math.nan
    fits = [max((_box_iou(box, true) for box in boxes), default=0.0) for true in true_boxes]
    return math.fsum(fits) / max(len(boxes), len(true_boxes))


def _box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    either = sum(max(0.0, x2 - x1) * max(0.0, y2 - y1) for x1, y1, x2, y2 in (a, b)) - both
    return both / either if either > 0 else 0.0


def right_answer(prompt: Prompt, *, boxes: bool = True) -> str:
    """The first right answer, or the spans, or the boxes, as they are compared with those of other prompts; "" where none is known."""
    target = prompt.target
    spans, true_boxes = (
        _lists(target.get(key), size) if isinstance(target, Mapping) else []
        for key, size in (("spans", 2), ("boxes", 4))
    )
    text = "" if spans else _folded(next(iter(_right_answers(target)), ""))
    return text or (repr(spans) if spans else repr(true_boxes) if true_boxes and boxes else "")


def next_unlike(prompts: Sequence[Prompt]) -> list[Prompt | None]:
    """For each prompt the next one, round the end, of which something else is true; None where there is none, or nothing is known."""
    truths = [right_answer(prompt) for prompt in prompts]
    found: list[Prompt | None] = []
    for i, truth in enumerate(truths):
        after = (k % len(truths) for k in range(i + 1, i + len(truths)))
        other = next((k for k in after if truths[k] and truths[k] != truth), None) if truth else None
        found.append(None if other is None else prompts[other])
    return found


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
