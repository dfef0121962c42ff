"""Reading time spans, numbers and tagged elements out of what a model wrote. Nothing here raises, whatever the text.

A span is (start, end) in seconds. It is read as written: it may be reversed, empty or infinite; the scorer judges that.
Every function takes time in proportion to the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Span = tuple[float, float]
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


def tagged_text(text: str, tag: str | None, *, require_tag: bool = False) -> str:
    """The text of the last `tag` element; without one, the entire text, or "" if the tag is required."""
    inner = last_element(text, tag) if tag else text
    return ("" if require_tag else text) if inner is None else inner


def last_element(text: str, tag: str) -> str | None:
    """What the last `<tag>…</tag>` holds; None if no opening tag is followed by a closing one."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.rfind(opening, 0, max(0, text.rfind(closing)))
    if start < 0:
        return None
    start += len(opening)
    return text[start : text.index(closing, start)]


def spans_in(text: str) -> list[Span]:
    """Spans of a text, in its order, by the first of these rules that finds one:

    1. clock times, H:MM:SS(.f) or M:SS(.f), paired in order;
    2. `a - b`, `a to b` (also until, through, ~, an arrow), with or without a unit of seconds;
    3. `a and b`;
    4. all numbers, paired in order. One that is left over is dropped.

    A clock time counts as its seconds in rules 2 to 4, so "0:30 to 45" is (30, 45). What looks like one and is not ("16:9",
    "1:75") is skipped, as are percentages. A time is never negative: a hyphen is no sign. A comma separates thousands
    ("1,234.5"), except within brackets that hold only numbers: "[3,700]" is (3, 700). Digits may be of any script. Minutes
    in words are not read ("2 min" is 2), nor are fractions of the duration told from seconds.

    Source: the order that most published parsers share; "and" is Time-R1's (arXiv:2503.13377), which reads it as "to".
    Here it comes second, so that "2 and 3 people, 10 to 20" is (10, 20).
    """
    plain = text.translate(_PLAIN_SIGNS)
    times = _times(plain)
    clocks = [time.seconds for time in times if time.is_clock]
    if len(clocks) >= 2:
        return _pairs(clocks)
    return _ranges(plain, times, _TO) or _ranges(plain, times, _AND) or _pairs([time.seconds for time in times])


def numbers_in(text: str) -> list[float]:
    """All numbers and clock times (as seconds) of a text, in its order, read as `spans_in` does."""
    return [time.seconds for time in _times(text.translate(_PLAIN_SIGNS))]


def strict_span_list(text: str) -> list[Span] | None:
    """The pairs of a list such as "[(1.0, 5.8), (20, 23.5)]" (round or square), blanks around allowed; None for all else.

    An empty list is none. Source: VideoChat-R1's glue element, arXiv:2504.06958.
    """
    if _SPAN_LIST.fullmatch(text) is None:
        return None
    return _pairs([float(number) for number in _PLAIN_NUMBER.findall(text)])


class _Time(NamedTuple):
    seconds: float
    start: int
    end: int
    is_clock: bool


# Signs that stand for the plain ones, each of one character so that places stay the same.
_PLAIN_SIGNS = str.maketrans("‐‑‒–—―−－～〜：．，", "--------~~:.,")
# Repetitions are possessive (++): without going back, a long run of digits costs one pass.
_TOKEN = re.compile(
    r"(?P<list>[\[(](?=\s*+\.?\d)[\d.,\s]*+[\])])"
    r"|(?P<clock>\d++(?::\d++)++(?:\.\d++|,\d{3}(?![\d:]))?+)"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})++(?!\d)(?:\.\d++)?+|\d++(?:\.\d++)?+|(?<![\d.])\.\d++)(?:[eE][+-]?\d{1,3}(?!\d))?+)"
    r"(?:\s{0,2}(?P<percent>%)|\s{0,2}(?:seconds?|sec\.|secs?|s)(?![A-Za-z])|\s?秒)?"
)
_PLAIN_NUMBER = re.compile(r"\d++(?:\.\d++)?+|\.\d++")
_TO = re.compile(r"\s*(?:-+>?|=+>|~|→|to|until|till|through|到|至)\s*", re.IGNORECASE)
_AND = re.compile(r"\s*and\s*", re.IGNORECASE)
_LONGEST_GAP = 16
_NUMBER = r"\s*+(?:\d++(?:\.\d++)?+|\.\d++)\s*+"
_PAIR = rf"\s*+(?:\({_NUMBER},{_NUMBER}\)|\[{_NUMBER},{_NUMBER}\])\s*+"
_SPAN_LIST = re.compile(rf"\s*+\[{_PAIR}(?:,{_PAIR})*+\]\s*+")


def _times(text: str) -> list[_Time]:
    """Every number and clock time with its place in the text, units included."""
    times = []
    for found in _TOKEN.finditer(text):
        if found["list"]:
            first = found.start()
            for number in _PLAIN_NUMBER.finditer(found["list"]):
                times.append(_Time(float(number[0]), first + number.start(), first + number.end(), False))
        elif found["clock"]:
            if (seconds := _clock_seconds(found["clock"])) is not None:
                times.append(_Time(seconds, *found.span(), True))
        elif not found["percent"]:
            times.append(_Time(float(found["number"].replace(",", "")), *found.span(), False))
    return times


def _clock_seconds(clock: str) -> float | None:
    """Seconds of "H:MM:SS(.f)" or "M:SS(.f)"; None if it is another thing with colons. Subtitles write ",f"."""
    whole, _, fraction = clock.replace(",", ".").partition(".")
    first, *others = whole.split(":")
    if len(others) > 2 or any(len(part) != 2 or float(part) >= 60 for part in others):
        return None
    seconds = float(first)
    for part in others:
        seconds = seconds * 60 + float(part)
    return seconds + float(f"0.{fraction or 0}")


def _ranges(text: str, times: Sequence[_Time], between: re.Pattern[str]) -> list[Span]:
    """Neighbours with nothing but the sign or word between them; each time belongs to one range at most."""
    ranges, i = [], 0
    while i + 1 < len(times):
        start, end = times[i].end, times[i + 1].start
        if end - start <= _LONGEST_GAP and between.fullmatch(text, start, end):
            ranges.append((times[i].seconds, times[i + 1].seconds))
            i += 1
        i += 1
    return ranges


def _pairs(values: Sequence[float]) -> list[Span]:
    return list(zip(values[::2], values[1::2]))
