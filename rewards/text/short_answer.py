"""Is a short answer the right one? Compared whole, without what a reader does not count: case, articles, punctuation, and how a
number is written."""

from __future__ import annotations

import re

from grpo_mm.rewards.answers.numbers import numbers
from grpo_mm.rewards.answers.writing import normal_form, plain_signs, unmarked


def same_short_answer(prediction: str, answer: str) -> float:
    """1 if both are the same in `short_form`, else 0: "The Red car." is "a red car", "twenty-one" is "21"; "red" is not "dark red".

    Source: the normalised exact match of reading comprehension (SQuAD, arXiv:1606.05250: case, punctuation, articles) with numbers
    by value, as VQA's evaluation writes number words as digits (arXiv:1505.00468). Ours: number words above ten, signs that
    change what is meant ("C++", "50%", "-3") stay, and an article is one only before a word ("vitamin A").
    """
    own, other = short_form(prediction), short_form(answer)
    return float(own == other) if own and other else float(exact_form(prediction) == exact_form(answer) != "")


def exact_form(text: str) -> str:
    """A text for comparing letter by letter: one writing of Unicode, single blanks, none at the ends. Case counts."""
    return " ".join(normal_form(text).split())


def short_form(text: str) -> tuple[str, ...]:
    """The words and numbers of an answer as they are compared; () if nothing is left. Time in proportion to the text.

    Example: "**The** three Cars" is ("3", "cars"), "1,000.50 km" is ("1000.5", "km").
    """
    plain = plain_signs(unmarked(normal_form(text))).lower()
    tokens: list[str | float] = []
    start = 0
    for found in numbers(plain):
        if found.value is None:  # what cannot be told ("1:20") is compared as it is written
            continue
        tokens += _words(plain[start : found.start])
        tokens.append(found.value)
        start = found.end - _unit_length(plain[found.start : found.end], found.value)
    tokens += _words(plain[start:])
    last = len(tokens) - 1
    kept = [token for i, token in enumerate(tokens) if token not in _ARTICLES or i == last]
    return tuple(_shown(token) for token in _with_values(kept))


_ARTICLES = ("a", "an", "the")
_APOSTROPHE = re.compile(r"(?<=[^\W\d])'(?=[^\W\d])")
_WORD = re.compile(r"-?\d[\w:/.,'-]*\w|[#@+%&€£¥°]?\w[\w+#%°€£¥]*|[+%&€£¥°]")


_DOTTED = re.compile(r"(?<![\w.])(?:[a-z]\.)+[a-z](?![\w])\.?")
_UNIT = re.compile(r"[a-z]\w*+$")


def _words(text: str) -> list[str]:
    text = _DOTTED.sub(lambda found: found[0].replace(".", ""), text)  # "u.s.a."
    return _WORD.findall(_APOSTROPHE.sub("", text).replace("_", " "))


def _unit_length(written: str, value: float) -> int:
    """Characters at the end that are a unit ("5km") and no part of the number ("1e3", "3 million")."""
    unit = _UNIT.search(written)
    bare = None if unit is None else next(numbers(written[: unit.start()]), None)
    return len(unit[0]) if unit is not None and bare is not None and bare.value == value else 0


_ONES = {
    name: float(value)
    for value, name in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    name: 10.0 * value
    for value, name in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9}


def _with_values(tokens: list[str | float]) -> list[str | float]:
    """Number words as their value: "two hundred and five" is 205; "one two" are two numbers. "minus" before one is its sign."""
    made: list[str | float] = []
    i = 0
    while i < len(tokens):
        value, after = _spelled(tokens, i)
        if value is None:
            made.append(tokens[i])
            i += 1
            continue
        if made and made[-1] in ("minus", "negative"):
            made[-1] = -value
        else:
            made.append(value)
        i = after
    return made


def _spelled(tokens: list[str | float], start: int) -> tuple[float | None, int]:
    """The value of the number that begins at a token, and where it ends; (None, start) for another word."""
    part = _below_hundred(tokens, start)
    if part is None and isinstance(tokens[start], float):
        part = tokens[start], start + 1
    if part is None and (tokens[start] == "hundred" or tokens[start] in _SCALES):
        part = 1.0, start
    if part is None:
        return None, start
    value, i = part
    total, largest = 0.0, float("inf")
    while True:
        if i < len(tokens) and tokens[i] == "hundred" and 1 <= value < 100:
            value, i = value * 100, i + 1
            more = _below_hundred(tokens, i + (tokens[i : i + 1] == ["and"]))
            if more is not None:
                value, i = value + more[0], more[1]
        scale = _SCALES.get(tokens[i]) if i < len(tokens) and isinstance(tokens[i], str) else None
        if scale is None or scale >= largest:
            return total + value, i
        total, largest, i = total + value * scale, scale, i + 1
        more = _below_hundred(tokens, i + (tokens[i : i + 1] == ["and"]))
        if more is None:
            return total, i
        value, i = more


def _below_hundred(tokens: list[str | float], i: int) -> tuple[float, int] | None:
    word = tokens[i] if i < len(tokens) else None
    if word in _ONES:
        return _ONES[word], i + 1
    if word not in _TENS:
        return None
    one = _ONES.get(tokens[i + 1], 0.0) if i + 1 < len(tokens) and isinstance(tokens[i + 1], str) else 0.0
    return (_TENS[word] + one, i + 2) if 0 < one < 10 else (_TENS[word], i + 1)


def _shown(token: str | float) -> str:
    """Numbers alike to twelve digits are one number; a minus zero is zero."""
    return f"{token + 0.0:.12g}" if isinstance(token, float) else token
