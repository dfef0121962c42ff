"""What times and spans of time a text names. Nothing here raises, whatever the text.

A span is (start, end) in seconds. It is read as written: it may be reversed, empty or infinite; the scorer judges that.
Every function takes time in proportion to the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from grpo_mm.rewards.answers.units import BEFORE, RANK, SECONDS, Unit, unit_after
from grpo_mm.rewards.answers.writing import boxed, plain_signs

Span = tuple[float, float]


def spans_in(text: str) -> list[Span]:
    """Spans of a text, in its order, by the first of these rules that finds one:

    1. clock times, H:MM:SS(.f) or M:SS(.f), paired in order;
    2. `a - b`, `a to b` (also until, through, ~, an arrow, bis, à, a, 到 …);
    3. `a and b`;
    4. all numbers, paired in order. One that is left over is dropped.

    A number without a unit is seconds, unless the other end of its range has one ("1-2 min" is (60, 120)). Units are hours,
    minutes, seconds and milliseconds, short or in words, of common languages, also together: "1m20s", "1 minute 20 seconds",
    "1分20秒", 1'20". A clock time counts as its seconds in rules 2 to 4, so "0:30 to 45" is (30, 45).

    What is no time makes no span, and neither does what it stands beside: ratios ("16:9", "1:75"), shares ("2-5%", "0.2 of the
    video"), frames, dates, ordinals, numbers below 0, numbers in words ("five to 10"), ends of which only one has a unit
    ("1 min to 90"). A hyphen between two numbers is no sign. A comma separates thousands ("1,234.5"), within brackets that
    hold only numbers it separates numbers ("[3,700]" is (3, 700)), and beside a unit or a range it is a decimal sign
    ("80,5 s bis 95 s"). Digits may be of any script.

    Source: the order that most published parsers share; "and" is Time-R1's (arXiv:2503.13377), which reads it as "to".
    Here it comes second, so that "2 and 3 people, 10 to 20" is (10, 20). Deviates: they know no units, and read "1 minute 20
    seconds to 1 minute 35 seconds" as (20, 1).
    """
    plain = plain_signs(boxed(text))
    times = _times(plain)
    clocks = [time.seconds for time in times if time.is_clock and time.seconds is not None]
    ranges = _ranges(plain, times, _TO)
    is_paired = len(clocks) % 2 == 0 or not any(one.is_clock for one in ranges)
    if len(clocks) >= 2 and is_paired and not any(one.is_mixed for one in ranges):
        return _pairs(clocks)
    ranges = ranges or _ranges(plain, times, _AND)
    if ranges:
        return [one.span for one in ranges if one.span is not None]
    return _loose(times)


def numbers_in(text: str) -> list[float]:
    """All numbers and clock times (as seconds) of a text, in its order, read as `spans_in` does."""
    return [seconds for seconds in readings_in(text) if seconds is not None]


def readings_in(text: str) -> list[float | None]:
    """The same with None in the place of each that may be a number and cannot be told: "-5", "4/5"."""
    times = _times(plain_signs(text))
    return [time.seconds for time in times if time.seconds is not None or (time.is_open and not time.is_word)]


def strict_span_list(text: str) -> list[Span] | None:
    """The pairs of a list such as "[(1.0, 5.8), (20, 23.5)]" (round or square), blanks around allowed; None for all else.

    Source: VideoChat-R1's glue element, arXiv:2504.06958, which is read as a Python literal. Deviates: an empty list is
    none, where nothing would be compared; and no other literals are taken.
    """
    if _SPAN_LIST.fullmatch(text) is None:
        return None
    return _pairs([float(number) for number in _PLAIN_NUMBER.findall(text)])


class _Time(NamedTuple):
    """A number in a text. `seconds` is None where it is no time; `is_open`: it may be one, but cannot be told."""

    seconds: float | None
    start: int
    end: int
    unit: Unit | None = None
    is_clock: bool = False
    is_open: bool = False
    is_joined: bool = False
    """Written in several units: "1m20s"."""
    is_word: bool = False


class _Range(NamedTuple):
    """`span` is None where an end is no time. Of its ends both are clock times, or one alone (`is_mixed`), or none."""

    span: Span | None
    is_clock: bool
    is_mixed: bool


# Repetitions are possessive (++): without going back, a long run of digits costs one pass.
_NUMBER_WORD = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|ninety|"
    "hundred|half an?|quarter of an?|an?|several|few"
)
_TOKEN = re.compile(
    r"(?P<list>[\[(](?=\s*+\.?\d)[\d.,\s]*+[\])])"
    r"|(?P<primes>\d{1,3}\s?['’′]\s?\d{1,2}(?:\.\d{1,3})?\s?(?:\"|”|″|''|′′))"
    r"|(?P<swiss>(?<![\d'’])[1-9]\d{0,2}(?:['’]\d{3})++(?![\d'’])(?:[.,]\d++)?+)|(?P<lakh>(?<![\d,])[1-9]\d?(?:,\d\d(?!\d))++,\d{3}(?![\d,])(?:\.\d++)?+)"
    r"|(?P<unclear>\d++(?::\d++)++(?:;\d++|,\d(?![\d:]))|\d{1,3}['’′]\d{1,2}(?!\d))"
    r"|(?P<clock>\d++(?::\d++)++(?:\.\d++|,\d{3}(?![\d:]))?+)"
    r"|(?P<odd>\d{4}-\d{1,2}-\d{1,2}(?!\d)|\d++(?:/\d++)++|\d++\s?(?:\*\*|[\^_×])\s?\d++[\d_^]*+|\d++(?:\.\d++){2,}+"
    r"|\d{1,3}\x20(?:000|0\d\d)(?!\d))"
    r"|(?P<european>\d{1,3}(?:\.\d{3})++,\d++)"
    r"|(?P<comma>(?<![\d,])\d++,\d{1,2}(?![\d,]))"
    r"|(?P<number>(?:\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})++(?!\d)(?:\.\d++)?+|\d++(?:\.\d++)?+|(?<![\d.])\.\d++)"
    r"(?:[eE][+-]?\d{1,3}(?!\d))?+)"
    rf"|(?<![^\W\d_])(?P<word>{_NUMBER_WORD})(?![^\W\d_])",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(r"\d++(?:\.\d++)?+|\.\d++")
_TO_WORDS = (
    "up to|to|until|till|through|thru|bis zum|bis|jusqu'à|à|hasta|a|al|fino a|até|tot|do|до|到|至|から|에서|부터"
)
_SECOND = r"(?:\s*+(?:第|(?:the\s+)?(?:seconds?|secs?|sekunde|t\s?=|time))\s*+)?"
_TO = re.compile(rf"\s*(?:-+>?|=+>|~|→|\.\.+|…|{_TO_WORDS}){_SECOND}\s*", re.IGNORECASE)
_AND = re.compile(rf"\s*(?:and|und|et|y|e|и|и|en|och|&|和|与|與|と|와|과){_SECOND}\s*", re.IGNORECASE)
_JOINED = re.compile(r"\s{0,2}(?:,\s{0,2})?(?:(?:and|und|et|y|e|и|と)\s{1,2})?", re.IGNORECASE)
_GLUED_BEFORE = re.compile(r"(?:^|[^\w])(?:to|from|and|until|till|at|bis|und|à|a|de|t|s|pt)$", re.IGNORECASE)
_GLUED_AFTER = re.compile(r"(?:to|until|till|and|bis|und|à)(?![^\W\d_])", re.IGNORECASE)
_NUMBERED = re.compile(r"\d{1,2}\s?(?:=|[:)](?!\d))")  # "t1 = 3", "Clip 1: 3 s"
_SECOND_NUMBER = re.compile(r"\d++(?:\.\d++)?+\s?[秒초]")
_LABEL = re.compile(r"\b(?:clip|event|segment|moment|interval|span|answer|window)\s{0,2}$", re.IGNORECASE)
_LETTER = re.compile(r"[A-Za-z_^\u00aa-\u024f\u0370-\u058f]")
_SIGN = re.compile(r"(?:^|[\s(\[{:=,;|\"'<>])-$")
_LONGEST_GAP, _LOOKED_BACK = 16, 32
_NUMBER = r"\s*+(?:\d++(?:\.\d++)?+|\.\d++)\s*+"
_PAIR = rf"\s*+(?:\({_NUMBER},{_NUMBER}\)|\[{_NUMBER},{_NUMBER}\])\s*+"
_SPAN_LIST = re.compile(rf"\s*+\[{_PAIR}(?:,{_PAIR})*+\]\s*+")


def _times(text: str) -> list[_Time]:
    """Every number and clock time with its place in the text, units included."""
    times: list[_Time] = []
    for found in _TOKEN.finditer(text):
        start, end = found.span()
        unit, after = unit_after(text, end)
        if found["word"]:
            word = found["word"].lower()
            if unit in SECONDS or (word not in ("a", "an") and not word.endswith(" a") and not word.endswith(" an")):
                times.append(_Time(None, start, after, unit, is_open=unit in SECONDS, is_word=True))
            continue
        if found["list"]:
            scale = SECONDS.get(unit or "s")
            is_other = scale is None or _counts_other(text, start, times[-1] if times else None)
            for number in _PLAIN_NUMBER.finditer(found["list"]):
                value = None if is_other else scale * float(number[0])
                times.append(_Time(value, start + number.start(), start + number.end(), unit))
            continue
        for time in _read(found, text, unit, after, times[-1] if times else None):
            if times and (joined := _together(times[-1], time, text, found)) is not None:
                times[-1] = joined
            else:
                times.append(time)
    return times


def _read(found: re.Match[str], text: str, unit: Unit | None, after: int, before: _Time | None) -> list[_Time]:
    """The one time of a token, or the two of "3,7"."""
    start, end = found.span()
    is_negative = _is_negative(text, start, before)
    no_time = unit == "other" or _counts_other(text, start, before) or (unit is None and _is_name(text, end))
    if is_negative or no_time:
        return [_Time(None, start, after, "other", is_open=is_negative)]
    if found["odd"] or found["unclear"]:
        return [_Time(None, start, after, unit, is_open=True)]
    if found["clock"] or found["primes"]:
        seconds = _clock_seconds(
            found["clock"] or ":".join(_PLAIN_NUMBER.findall(found["primes"])), primes=bool(found["primes"])
        )
        if unit == "h" or unit == "ms":
            return [_Time(None, start, after, unit, is_open=True)]
        return [_Time(seconds, start, after, "s", is_clock=seconds is not None)]
    written = found[0]
    if found["comma"]:
        if unit is None and not written.startswith("0,") and not _is_in_range(text, start, end, before):
            return [
                _Time(float(part), start + place, start + place + len(part))
                for part, place in zip(written.split(","), (0, written.index(",") + 1))
            ]
        written = written.replace(",", ".")
    elif found["swiss"] and "," in written:
        written = written.replace(",", ".")
    elif found["european"]:
        written = written.replace(".", "").replace(",", ".")
    value = float(re.sub(r"[,'’\u00a0\u202f\u2009]", "", written))
    return [_Time(value * SECONDS[unit or "s"], start, after, unit)]


def _together(before: _Time, time: _Time, text: str, found: re.Match[str]) -> _Time | None:
    """One time of "1 minute" and "20 seconds"; of "1m" and "20" as well. None where they are two."""
    if before.unit not in ("h", "m") or before.is_clock or time.is_clock or time.start - before.end > _LONGEST_GAP:
        return None
    gap = text[before.end : time.start]
    is_lower = time.unit in SECONDS and RANK.index(time.unit) > RANK.index(before.unit)
    if not _JOINED.fullmatch(gap) or not (is_lower or (time.unit is None and not gap.strip())):
        return None
    if before.seconds is None or time.seconds is None:
        return _Time(None, before.start, time.end, before.unit, is_open=True)
    lower = time.unit or RANK[RANK.index(before.unit) + 1]
    value = time.seconds if time.unit else time.seconds * SECONDS[lower]
    fits = value < SECONDS[RANK[RANK.index(lower) - 1]] and before.seconds % SECONDS[before.unit] == 0
    if not fits or (time.unit is None and (gap or len(found[0]) != 2)):
        return None if gap.strip() else _Time(None, before.start, time.end, before.unit, is_open=True)
    return _Time(before.seconds + value, before.start, time.end, lower, is_joined=True)


def _clock_seconds(clock: str, *, primes: bool = False) -> float | None:
    """Seconds of "H:MM:SS(.f)" or "M:SS(.f)"; None if it is another thing with colons. Subtitles write ",f"."""
    whole, _, fraction = clock.replace(",", ".").partition(".")
    first, *others = whole.split(":")
    if len(others) > 2 or any((len(part) != 2 and not primes) or float(part) >= 60 for part in others):
        return None
    seconds = float(first)
    for part in others:
        seconds = seconds * 60 + float(part)
    return seconds + float(f"0.{fraction or 0}")


def _counts_other(text: str, start: int, last: _Time | None) -> bool:
    """Whether a number is part of a name ("x2", "frame 12") or has its unit in front ("minute 2")."""
    if last is not None and last.seconds is None and last.end == start:
        return True
    before = text[max(0, start - _LOOKED_BACK, 0 if last is None else last.end) : start]
    if before and text[start] not in "[(" and _LETTER.match(before[-1]):
        return not _GLUED_BEFORE.search(before) or _NUMBERED.match(text, start) is not None
    if _LABEL.search(before) and _NUMBERED.match(text, start):
        return True
    if before.rstrip().endswith("第") and _SECOND_NUMBER.match(text, start):
        return False
    return BEFORE.search(before) is not None


def _is_name(text: str, end: int) -> bool:
    """Whether letters that are no unit follow at once: "3D", "12b"."""
    return _LETTER.match(text, end) is not None and not _GLUED_AFTER.match(text, end)


def _is_negative(text: str, start: int, before: _Time | None) -> bool:
    if _SIGN.search(text[max(0, start - 2) : start]) is None:
        return False
    return before is None or bool(text[before.end : start - 1].strip()) or start - before.end > _LONGEST_GAP


def _is_in_range(text: str, start: int, end: int, before: _Time | None) -> bool:
    """Whether a sign or word of a range stands beside it."""
    behind = _TO.match(text, end)
    if behind is not None and behind.end() - end <= _LONGEST_GAP and text[behind.end() : behind.end() + 1].isdigit():
        return True
    return (
        before is not None and start - before.end <= _LONGEST_GAP and _TO.fullmatch(text, before.end, start) is not None
    )


def _ranges(text: str, times: Sequence[_Time], between: re.Pattern[str]) -> list[_Range]:
    """Neighbours with nothing but the sign or word between them; each time belongs to one range at most."""
    ranges, i = [], 0
    while i + 1 < len(times):
        first, second = times[i : i + 2]
        if second.start - first.end <= _LONGEST_GAP and between.fullmatch(text, first.end, second.start):
            clocks = (first.is_clock, second.is_clock)
            ranges.append(_Range(_span(first, second), all(clocks), any(clocks) and not all(clocks)))
            i += 1
        i += 1
    return ranges


def _span(first: _Time, second: _Time) -> Span | None:
    """In seconds; None where an end is no time, or its unit cannot be told."""
    if first.seconds is None or second.seconds is None:
        return None
    if first.unit is None and second.unit in ("h", "m", "ms") and not second.is_joined:
        start = first.seconds * SECONDS[second.unit]
        return (start, second.seconds) if start <= second.seconds else None
    return (first.seconds, second.seconds) if _is_seconds(first) == _is_seconds(second) or None not in (
        first.unit, second.unit
    ) else None  # fmt: skip


def _is_seconds(time: _Time) -> bool:
    return time.unit in (None, "s") and not time.is_joined


def _loose(times: Sequence[_Time]) -> list[Span]:
    """All times, paired in order; none if one of them cannot be told, or only one end of a pair has a unit other than seconds."""
    if any(time.is_open for time in times):
        return []
    told = [time for time in times if time.seconds is not None]
    pairs = list(zip(told[::2], told[1::2]))
    if any(None in (a.unit, b.unit) and _is_seconds(a) != _is_seconds(b) for a, b in pairs):
        return []
    return [(a.seconds, b.seconds) for a, b in pairs]


def _pairs(values: Sequence[float]) -> list[Span]:
    return list(zip(values[::2], values[1::2]))
