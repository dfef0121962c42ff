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
    return {
        "characters": float(len(text)),
        "repetition": repetition(text),
        "unparsed": float(not any(sign.isalnum() for sign in said_in(text) or "")),
        "tagged": float(_ANSWER.search(text) is not None or _BOXED in text),
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


def said_in(text: str) -> str | None:
    """What the last <answer> element holds, or without one what follows the thinking, without tags; None if either has no end."""
    answers = _ANSWER.findall(text)
    if answers:
        return _TAG.sub(" ", answers[-1])
    tags = list(_THOUGHT.finditer(text))
    if _OPEN.search(text) is not None or (tags and not tags[-1][1]):
        return None
    return _TAG.sub(" ", text[tags[-1].end() :] if tags else text)
