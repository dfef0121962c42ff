"""What number a text gives: rewards, benchmarks and held-out scoring read numbers with these functions alone.

A number is read as it is written, with a decimal comma or point, groups of thousands, digits of any script, in bold or in a
box, as 1e3, 1/2, ½ or 3 million; what is written like one and cannot be told (1_000, 0x10, 10**400, 3,5,7, 1:20, 1/0, 1e999) is none,
and never a part of it. Every function takes time in proportion to the length of the text, and none raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from grpo_mm.outside import finite_number
from grpo_mm.rewards.answers.number_words import (
    AND,
    BETWEEN,
    BOUND,
    BOUND_BEHIND,
    FROM,
    MINUS,
    REACHED,
    SCALE,
    SUM,
    TO,
    scale_of,
)
from grpo_mm.rewards.answers.writing import plain_signs, unmarked


class Written(NamedTuple):
    """Example: "about 3.5 m" holds Written(3.5, 6, 9)."""

    value: float | None
    """None: digits that cannot be told."""
    start: int
    end: int


def whole_number(text: str) -> float | None:
    """The number that a text is, with marks of emphasis around it and a full stop behind; None for any other text."""
    plain = unmarked(text).strip(" \t\r\n\"'")
    found = _WRITTEN.match(plain)
    if found is None or plain[found.end() :] not in ("", "."):
        return None
    return None if found["tail"] else _value(found)


def has_decimals(text: str) -> bool:
    """Whether a number is written with a decimal sign or as a fraction: "3.0", "3,5", "½", and so "3." is; not "1,000"."""
    plain = unmarked(text)
    return "." in _THOUSANDS.sub("", plain) or "/" in plain or _DECIMAL_COMMA.search(plain) is not None


def numbers(text: str) -> Iterator[Written]:
    """All that is written in digits, in order, with places in `plain_signs` of the text; "x2", "Q4" and "2nd" are names."""
    for found in _WRITTEN.finditer(plain_signs(text)):
        if (found["tail"] or "").lower() not in _ORDINALS:
            yield Written(_value(found), *found.span())


def first_number(text: str) -> float | None:
    """The first number of a text ("about 3.5 m" is 3.5); None if there is none, or the first cannot be told."""
    found = next(numbers(unmarked(text)), None)
    return None if found is None else found.value


def read_number(text: str) -> float | None:
    """`first_number`, unless the text leaves it open: "between 3 and 5", "3-5", "3 or 4", "not 3", "> 3", "2 + 3" give none.

    Bounds, ranges and denials are known in common languages; "minus 3" is -3.
    """
    plain = unmarked(text)
    found = numbers(plain)
    first, second = next(found, None), next(found, None)
    if first is None or first.value is None:
        return None
    before = plain[max(0, first.start - _LOOKED_BACK) : first.start]
    if BOUND.search(before) or BOUND_BEHIND.match(plain, first.end):
        return None
    if second is not None and second.start - first.end <= _LONGEST_GAP and second.value != first.value:
        between = plain[first.end : second.start]
        is_range = (BETWEEN.search(before) and AND.search(between)) or (FROM.search(before) and TO.fullmatch(between))
        if is_range or REACHED.fullmatch(between) or SUM.fullmatch(between):
            return None
    return -first.value if MINUS.search(before) else first.value


def read_count(text: str) -> float | None:
    """The one number of a text in digits, or else the one in words up to twenty; None if there is none, or several among the
    first hundred."""
    plain = unmarked(text)
    written = list(islice(numbers(plain), _MOST))
    found = {None if _is_bound(plain, one.start, one.end) else one.value for one in written}
    found = found or set(islice(_in_words(plain.lower()), _MOST))
    return found.pop() if len(found) == 1 else None


def _is_bound(plain: str, start: int, end: int) -> bool:
    before = plain[max(0, start - _LOOKED_BACK) : start]
    return any((BOUND.search(before), MINUS.search(before), BOUND_BEHIND.match(plain, end), _OR_WORD.match(plain, end)))


def spelled(word: str) -> float | None:
    """ "twelve" is 12; None for other words."""
    return _VALUES.get(word.lower())


_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_VALUES = {name: float(value) for value, name in enumerate(_NAMES.split())}
_LARGER = frozenset(
    [
        "thirty",
        "forty",
        "fifty",
        "sixty",
        "seventy",
        "eighty",
        "ninety",
        "hundred",
        "hundreds",
        "thousand",
        "thousands",
        "million",
        "billion",
        "trillion",
        "dozen",
        "dozens",
        "half",
    ]
)
POINTS_OUT = re.compile(
    r"\b(?:the|this|that|which|each|every|other|another|no|any|some|same|last|first|left|right|only|red|green|blue|yellow|"
    r"black|white)\s++$",
    re.IGNORECASE,
)
"""Before a "one" that is a pronoun."""
_WORD = re.compile(r"[a-z]++")
_NONE_OF_THEM = re.compile(r"\s(?:of the (?:above|options|choices|answers|others)|apply|applies)\b")
# A letter before the digits makes a name of them; characters of scripts without blanks do not.
_LETTER = r"A-Za-z\u00aa-\u024f\u0370-\u058f"
_WRITTEN = re.compile(
    rf"(?<![{_LETTER}\d_.])(?P<sign>(?<![\w)\]])[+-])?"
    r"(?P<body>\d{1,6}\s\d{1,3}/\d{1,3}(?![\d/])"
    r"|\.?\d(?:[\d_]|[.,:/'’\u00a0\u202f\u2007\u2009-](?=\d)|\s(?=\d{3}(?!\d))|\s?(?:\*\*?|[×·^xX])\s?(?=\d))*+)"
    rf"(?P<exponent>[eE][+-]?\d++)?+(?P<scale>{SCALE})?+(?P<tail>[A-Za-z_^]\w*+)?+"
)
_PLAIN = re.compile(r"\d++(?:\.\d++)?+|\.\d++")
_FORMS = (  # what a body of digits and signs may be, and how its decimal number is written
    (_PLAIN, lambda body: body),
    (re.compile(r"[1-9]\d{0,2}(?:,\d{3})++(?:\.\d++)?+"), lambda body: body.replace(",", "")),
    (re.compile(r"[1-9]\d?(?:,\d\d(?!\d))++,\d{3}(?:\.\d++)?+"), lambda body: body.replace(",", "")),  # lakh, crore
    (re.compile(r"\d++,\d++"), lambda body: body.replace(",", ".")),
    (re.compile(r"[1-9]\d{0,2}(?:\.\d{3})++,\d++"), lambda body: body.replace(".", "").replace(",", ".")),
    (re.compile(r"[1-9]\d{0,2}(?:\.\d{3}){2,}+"), lambda body: body.replace(".", "")),
    (re.compile(r"[1-9]\d{0,2}(?:['’\u00a0\u202f\u2007\u2009]\d{3})++(?:[.,]\d++)?+"), lambda body: _ungrouped(body)),
)
_RATIO = re.compile(r"(\d{1,15})/(\d{1,15})")
_MIXED = re.compile(r"(\d{1,6})\s(\d{1,3})/(\d{1,3})")
_ORDINALS = ("st", "nd", "rd", "th")
_NO_UNIT = re.compile(r"[xX_^]|[kKMBD](?!\w)|\w*\d(?<![A-Za-z][23])")
_THOUSANDS = re.compile(r"(?<!\d)[1-9]\d{0,2}(?:\.\d{3}){2,}+(?!\d)")
_DECIMAL_COMMA = re.compile(r"(?<![\d,])(?:\d++,(?!\d{3}(?!\d))\d++|0,\d++|[\d.]*+\.\d{3},\d++)(?![\d,])")
_LONGEST_GAP, _LOOKED_BACK, _MOST = 24, 32, 100
_OR_WORD = re.compile(rf"\s{{0,2}}(?:or|to|-)\s{{0,2}}(?:{_NAMES.replace(' ', '|')})\b", re.IGNORECASE)
_SHARE = re.compile(r"[\s-](?:tenth|hundredth|thousandth|third|half|halves|quarter|(?:fif|six|seven|eigh|nin)th)s?\b")


def _value(found: re.Match[str]) -> float | None:
    body, tail = found["body"], found["tail"]
    if tail and _NO_UNIT.match(tail):
        return None
    if not found["exponent"] and (ratio := _RATIO.fullmatch(body) or _MIXED.fullmatch(body)) is not None:
        *whole, part, parts = map(int, ratio.groups())
        value = sum(whole) + part / parts if parts and (not whole or part < parts) else None
    else:
        written = next((plain(body) for form, plain in _FORMS if form.fullmatch(body)), None)
        value = None if written is None else finite_number(float(written + (found["exponent"] or "")))
    if value is not None and found["scale"]:
        scale = None if found["more"] else scale_of(found["scale"])
        value = None if scale is None else finite_number(round(value * scale, 9))
    return -value if value is not None and found["sign"] == "-" else value


def _ungrouped(body: str) -> str:
    return re.sub(r"['’\u00a0\u202f\u2007\u2009]", "", body).replace(",", ".")


def _in_words(text: str) -> Iterator[float | None]:
    """Values of number words; "one" where it is no pronoun, "none" as 0, None for words of larger numbers."""
    for found in _WORD.finditer(text):
        word = found[0]
        end = found.end()
        if word == "none":
            yield None if _NONE_OF_THEM.match(text, end) else 0.0
        elif (
            word in _VALUES
            and (_is_bound(text, found.start(), end) or _SHARE.match(text, end))
            or word in _LARGER
            or text[found.start() - 1 : found.start()] == "-"
            and word in _VALUES
        ):
            yield None
        elif word in _VALUES and not (
            word == "one" and POINTS_OUT.search(text[max(0, found.start() - 24) : found.start()])
        ):
            yield _VALUES[word]
