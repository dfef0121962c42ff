"""Plain statistics of texts: where padding, repeating and empty answers show before they show elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

STATISTICS = ("characters", "repetition", "unparsed", "tagged")
MEASURED_CHARACTERS = 4000
"""Of a text: repetition is measured on its start, so that the time stays bounded."""
WINDOW = 10
"""Characters of a piece that may come again: longer than a word, so that "the red circle … the red square" costs little."""

_ANSWER = re.compile(r"<\s{0,3}answer\s{0,3}>(.*?)<\s{0,3}/\s{0,3}answer\s{0,3}>", re.IGNORECASE | re.DOTALL)
_OPEN = re.compile(r"<\s{0,3}answer\s{0,3}>", re.IGNORECASE)
_THOUGHT = re.compile(r"<\s{0,3}(/?)\s{0,3}think\s{0,3}>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{0,200}>")
_BOXED = "\\boxed{"


def text_statistics(text: str) -> dict[str, float]:
    """What is measured of one text.

    characters: its length.
    repetition: share of its pieces of 10 characters that stood in it before, 0 to 1; 0 of a text of fewer than 20.
    unparsed: 1 where nothing can be read as an answer: no letter and no digit in its last <answer> element; or, without one, in
        what follows its thinking; or the element, or the thought, has no end.
    tagged: 1 where there is an <answer> element or a \\boxed{}.
    """
    answers = _ANSWER.findall(text)
    return {
        "characters": float(len(text)),
        "repetition": repetition(text),
        "unparsed": float(not _says_something(text, answers[-1] if answers else None)),
        "tagged": float(bool(answers) or _BOXED in text),
    }


def repetition(text: str) -> float:
    """Share of the pieces of WINDOW characters that stood in the text before; blanks count as one, tags not at all."""
    plain = " ".join(_TAG.sub(" ", text[:MEASURED_CHARACTERS]).split())
    if len(plain) < 2 * WINDOW:
        return 0.0
    pieces = [plain[i : i + WINDOW] for i in range(len(plain) - WINDOW + 1)]
    return 1 - len(set(pieces)) / len(pieces)


def text_means(texts: Sequence[str]) -> Mapping[str, tuple[float, int]]:
    """(sum, number of texts) of every statistic; nothing without a text."""
    found = [text_statistics(text) for text in texts]
    return {name: (sum(one[name] for one in found), len(found)) for name in STATISTICS} if found else {}


def distinct_answers(texts: Sequence[str]) -> float:
    """(different texts - 1) / (texts - 1): 0 where every prompt is answered alike; NaN of fewer than two."""
    plain = [" ".join(text.split()) for text in texts]
    return (len(set(plain)) - 1) / (len(plain) - 1) if len(plain) > 1 else float("nan")


def _says_something(text: str, answer: str | None) -> bool:
    if answer is None:
        if _OPEN.search(text) is not None:
            return False
        tags = list(_THOUGHT.finditer(text))
        if tags and not tags[-1][1]:
            return False
        answer = text[tags[-1].end() :] if tags else text
    return any(sign.isalnum() for sign in _TAG.sub(" ", answer))
