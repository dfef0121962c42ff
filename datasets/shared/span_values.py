"""Spans of time however rows write them, and what makes one unusable."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.datasets.shared.checked_fields import Span, take_seconds
from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, shown

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*(?:s|sec|secs|second|seconds)?\s*", re.IGNORECASE)
_CLOCK = re.compile(r"\s*(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)\s*")
_TWO = re.compile(r"\s*[\[(]?\s*([\d.:]+)\s*s?\s*(?:-|–|—|to|,|;|~|\s)\s*([\d.:]+)\s*s?\s*[\])]?\s*", re.IGNORECASE)
_STARTS, _ENDS = (("start", "start_time", "begin", "from"), ("end", "end_time", "stop", "to"))
BROKEN = ("inverted span", "negative start")
"""Problems with which a row says nothing; the others a benchmark may keep."""


def read_seconds(value: Any, name: str, where: str) -> float:
    """Seconds from a number, or from "12.5", "12.5 s", "1:02.5" (minutes) or "00:01:02" (hours).

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, str):
        if found := _NUMBER.fullmatch(value):
            value = float(found[1])
        elif found := _CLOCK.fullmatch(value):
            hours, minutes, seconds = (float((part or "0").replace(",", ".")) for part in found.groups())
            value = 3600 * hours + 60 * minutes + seconds
    return take_seconds(value, name, where)


def read_spans(value: Any, where: str) -> tuple[Span, ...]:
    """Spans in seconds from [s, e], a list of such, {"start": s, "end": e}, a list of such, or a text of one of these or of
    "s-e", "s to e"; s and e as in `read_seconds`.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, str):
        value = _of_text(value, where)
    if isinstance(value, Mapping):
        return (_of_mapping(value, where),)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(f"{where}: {shown(value)} is no span; wanted [start, end] in seconds, or a list of such.")
    if len(value) == 2 and not any(isinstance(edge, (list, tuple, Mapping)) for edge in value):
        return ((read_seconds(value[0], "start", where), read_seconds(value[1], "end", where)),)
    return tuple(span for one in value for span in _one(one, where))


def span_problem(spans: Sequence[Span], duration: float | None, max_overrun_seconds: float) -> str:
    """Why spans cannot be used as they are; "" if they can. `BROKEN` are those that say nothing at all."""
    if not spans:
        return "no span"
    if any(end < start for start, end in spans):
        return "inverted span"
    if any(start < 0 for start, _ in spans):
        return "negative start"
    if any(end == start for start, end in spans):
        return "span of zero length"
    if duration is not None:
        latest = max(end for _, end in spans)
        if latest > duration + max_overrun_seconds or any(start >= duration for start, _ in spans):
            return "span outside the video"
    return ""


def _one(value: Any, where: str) -> tuple[Span, ...]:
    found = read_spans(value, where)
    if len(found) != 1:
        raise ConfigError(f"{where}: {shown(value)} is no span; wanted [start, end] in seconds.")
    return found


def _of_mapping(value: Mapping[str, Any], where: str) -> Span:
    edges = [next((value[name] for name in names if name in value), None) for names in (_STARTS, _ENDS)]
    if None in edges:
        raise ConfigError(f"{where}: {shown(value)} is no span; wanted start and end in seconds.")
    return read_seconds(edges[0], "start", where), read_seconds(edges[1], "end", where)


def _of_text(text: str, where: str) -> Any:
    if found := _TWO.fullmatch(text):
        return [found[1], found[2]]
    try:
        return parse_json(text)
    except BadJson:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ConfigError(
            f"{where}: {shown(text)} is no span; wanted 'start-end' or [start, end] in seconds."
        ) from None
