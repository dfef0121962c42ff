"""What a text answers: the letter of an option, yes or no, a number. What cannot be read is None, never a guess.

Every function takes time in proportion to the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ALONE = re.compile(r"\(?([A-Za-z])[).:]*+|\(?([A-Z])[).:]++(?:\s.*+)?+", re.DOTALL)
_BRACKETED = re.compile(r"(?<!\w)\(([A-Za-z])\)")
_SAID = re.compile(r"\b(?:answer|option|choice)(?: is|:| is:)?\s{1,4}\(?([A-Z])\b(?! [a-z])")
_DIGITS = re.compile(r"(?<![\w.])[+-]?\d{1,15}(?:\.\d{1,15})?(?!\w)")
_WORD = re.compile(r"[a-z]++")
_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_VALUES = {name: float(value) for value, name in enumerate(_NAMES.split())} | {"none": 0.0}
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}


def read_letter(text: str, choices: Sequence[str] | int) -> str | None:
    """The letter of the one option that a text chooses, by the first of these rules that finds it; None if there is none.

    1. the text is a letter ("c", "(C)", "C.") or begins with a marked one ("(C) left …", "C. left"), and its first line names
       no other in brackets ("(A) or (B)" chooses none);
    2. the text is that of one option, whatever the case, with or without a full stop;
    3. one option alone stands in brackets somewhere ("so it is (C)");
    4. one option alone is called the answer ("the answer is C").

    Args:
        choices: their texts, or how many there are; a letter beyond them is none.
    """
    plain = text.strip()
    letters = LETTERS[: choices if isinstance(choices, int) else len(choices)]
    if found := _ALONE.fullmatch(plain):
        letter = (found[1] or found[2]).upper()
        others = {other.upper() for other in _BRACKETED.findall(plain.splitlines()[0])} & set(letters) - {letter}
        return letter if letter in letters and not others else None
    if not isinstance(choices, int):
        same = [letter for letter, choice in zip(letters, choices) if _folded(choice) == _folded(plain)]
        if same:
            return same[0] if len(same) == 1 else None
    for pattern in (_BRACKETED, _SAID):
        named = {letter.upper() for letter in pattern.findall(plain)} & set(letters)
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def read_truth(text: str) -> bool | None:
    """Whether a text says yes or true, or else no or false, with the first word of it or of its last line; else None."""
    lines = text.strip().lower().splitlines()
    for line in (lines[0], lines[-1]) if lines else ():
        word = _WORD.search(line)
        if word is not None and not any(c.isalnum() for c in line[: word.start()]) and word[0] in _TRUTH:
            return _TRUTH[word[0]]
    return None


def read_count(text: str) -> float | None:
    """The one number of a text in digits, or else the one in words up to twenty; None if there is none, or several."""
    found = {float(digits) for digits in _DIGITS.findall(text)}
    found = found or {_VALUES[word] for word in _WORD.findall(text.lower()) if word in _VALUES}
    return found.pop() if len(found) == 1 else None


def _folded(text: str) -> str:
    return text.strip().rstrip(".").casefold()
