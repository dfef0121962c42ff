"""The spans of a text: which element holds them, and which of several counts; how they are written, `answers/times` knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from grpo_mm.rewards.answers.tags import last_element, tagged_text
from grpo_mm.rewards.answers.times import Span, numbers_in, spans_in, strict_span_list

__all__ = [
    "Pick",
    "Span",
    "last_element",
    "numbers_in",
    "parse_spans",
    "pick_span",
    "spans_in",
    "strict_span_list",
    "tagged_text",
]
"""With what is read in `answers`, which had this path."""

Pick = Literal["first", "last"]


def parse_spans(text: str, *, tag: str | None = "answer", require_tag: bool = False) -> list[Span]:
    """All spans of the last `tag` element, or of the entire text if there is no such element; [] if there are none.

    Args:
        tag: None reads the entire text.
        require_tag: a text without the element has no spans.

    Example: parse_spans("2 dogs <answer>12.54s to 17.83s</answer>") == [(12.54, 17.83)].
    """
    return spans_in(tagged_text(text, tag, require_tag=require_tag))


def pick_span(spans: Sequence[Span], pick: Pick) -> Span | None:
    """The first span (TimeLens, TimeChat) or the last (Time-R1); None if there is none."""
    return spans[0 if pick == "first" else -1] if spans else None
