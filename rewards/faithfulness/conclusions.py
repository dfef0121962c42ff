"""Does the reasoning conclude what the answer says? Read by rules, for answers whose kind rules can read.

The kind is that of the answer: an option, a box, a number, one of the choices, a time span, a colour, a direction, or yes
and no. The last thing of that kind in the last sentences is what the reasoning concludes. Everything here takes time in
proportion to the text and never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from grpo_mm.rewards.answers.choices import named_letter
from grpo_mm.rewards.answers.numbers import POINTS_OUT, numbers, spelled, whole_number
from grpo_mm.rewards.answers.times import Span, spans_in
from grpo_mm.rewards.answers.writing import plain_signs
from grpo_mm.rewards.faithfulness.sentences import sentences
from grpo_mm.rewards.spatial.box_text import Box, parse_boxes
from grpo_mm.rewards.spatial.boxes import as_boxes, iou
from grpo_mm.rewards.text.text_overlap import words
from grpo_mm.rewards.video.temporal_iou import hull_iou

LOOKED_AT = 4000
"""Characters at the end of a reasoning in which its conclusion is looked for."""
MOST_BOXES = 100
SAME = 0.9
"""The IoU from which two spans or boxes are the same."""


def concludes(reasoning: str, answer: str, *, choices: Sequence[str] = (), last: int = 3) -> bool | None:
    """Whether the last sentences conclude the answer; None where the answer or the conclusion is of no kind that is read.

    Args:
        choices: the options, with letters ("B. left") or without; a letter and its option are then the same.
        last: how many sentences are looked at, from the last one backwards, until one holds such a thing.

    Example: concludes("It is red. No, it is not red but blue.", "blue") is True.

    Source: ours; the published judge (arXiv:2604.08476) is a language model. A mention after "not", "rather than" and the
    like is no conclusion. What is concluded in other words than the answer's is not seen.
    """
    reader = _reader(answer.strip(), choices)
    if reader is None:
        return None
    for sentence in reversed(sentences(reasoning[-LOOKED_AT:])[-last:]):
        found = reader(sentence)
        if found is not None:
            return found
    return None


def _reader(answer: str, choices: Sequence[str]) -> Callable[[str], bool | None] | None:
    """Reads a sentence: whether it concludes the answer, None if it concludes nothing of the answer's kind."""
    if len(answer) > LOOKED_AT:
        return None
    texts = [_OPTION_MARK.sub("", choice).strip().casefold() for choice in choices]
    if any(len(text) == 1 and text.isalpha() for text in texts):  # the choices are the letters themselves
        texts = [""] * len(texts)
    letter = named_letter(answer)
    if letter is not None:
        return lambda sentence: _same(_last(_options(sentence, texts)), letter)
    if boxes := _boxes(answer):
        return lambda sentence: _same_boxes(_boxes(sentence), boxes)
    plain = answer.strip(" .!\"'").casefold()
    number = _NUMBER_ANSWER.fullmatch(plain_signs(plain))
    value = None if number is None else _value(number[1])
    if value is not None:
        return lambda sentence: _same(_last(_numbers(sentence)), value)
    if plain in texts:
        return lambda sentence: _same(_last(_options(sentence, texts)), chr(ord("A") + texts.index(plain)))
    if _only_a_span(plain):
        span = spans_in(plain)[0]
        return lambda sentence: _same_span(spans_in(_BRACKETED.sub(" ", sentence)), span)
    for family in FAMILIES:
        if plain in family:
            pattern = _pattern(family)
            return lambda sentence: _same(_last(_words(sentence, pattern, family)), family[plain])
    if plain in TRUTH:
        return lambda sentence: _same(_last(_words(sentence, _TRUTH_MENTION, TRUTH)), TRUTH[plain])
    return None


def _same(found: Any, wanted: Any) -> bool | None:
    return None if found is None else found == wanted


# ── options ──

MOST_OPTIONS = 10
"""Letters that are options where the prompt does not tell how many there are."""
_OPTION_MARK = re.compile(r"^\s*+\(?[A-Za-z][).:]++\s*+")
_NAMED_LETTER = re.compile(
    r"(?:\b(?:option|answer|choice)\b(?:\s+(?:is|would be|must be|should be))?+\s*+:?\s*+\(?|\()([A-Z])\b(?!['’])"
    r"|(?<![\w'’])([B-HJ-Z])(?![\w'’])|(?<![\w'’])(A)(?=[).:]|\s*+$)"
)


def _options(sentence: str, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(place, letter) of options, named by letter or by their text."""
    for found in _NAMED_LETTER.finditer(sentence):
        letter = found[1] or found[2] or found[3]
        if ord(letter) - ord("A") < (len(texts) or MOST_OPTIONS):
            yield from _unless_denied(sentence, found.start(), letter)
    named = {text: chr(ord("A") + index) for index, text in enumerate(texts) if text}
    if named:
        yield from _words(sentence, _pattern(named), named)


# ── boxes and spans ──

_BRACKETED = re.compile(r"[\[(][\d\s.+-]*+,[\d\s.,+-]*+[\])]")
_SPAN_WORDS = re.compile(
    r"[\s.:,()\[\]~–—-]|\d\s?(?:s|secs?|seconds?)?\b|\d|\b(?:seconds?|to|until|and|from|between)\b"
)


def _boxes(text: str) -> list[Box]:
    return [found.box for found in parse_boxes(text, most=MOST_BOXES)]


def _same_boxes(found: Sequence[Box], wanted: Sequence[Box]) -> bool | None:
    """Whether every box of the answer is one of the sentence's."""
    if not found:
        return None
    near_W = (iou(as_boxes(found), as_boxes(wanted)) >= SAME).any(dim=0).tolist()
    return all(near or box in found for near, box in zip(near_W, wanted))


def _only_a_span(answer: str) -> bool:
    return len(spans_in(answer)) == 1 and not _SPAN_WORDS.sub("", answer)


def _same_span(found: Sequence[Span], wanted: Span) -> bool | None:
    return None if not found else found[-1] == wanted or hull_iou(found[-1], wanted) >= SAME


# ── numbers ──

_SPELLED = "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_NUMBER_ANSWER = re.compile(rf"([+-]?[\d.][\d.,'/]{{0,40}}|{_SPELLED})(?:\s?[a-z%°][a-z^]{{0,11}})?+")
_NUMBER_WORD = re.compile(rf"(?<!\w)(?:{_SPELLED})(?!\w)", re.IGNORECASE)


def _value(text: str) -> float | None:
    value = spelled(text)
    return whole_number(text) if value is None else value


def _numbers(sentence: str) -> Iterator[tuple[int, float]]:
    """Numbers that are no coordinates; "one" counts where it is no pronoun."""
    plain = plain_signs(_BRACKETED.sub(" ", sentence))
    for written in numbers(plain):
        if written.value is not None and not plain[written.end - 1].isalpha():
            yield from _unless_denied(plain, written.start, written.value)
    for found in _NUMBER_WORD.finditer(plain):
        is_one = found[0].lower() == "one"
        if not is_one or not (POINTS_OUT.search(_before(plain, found.start())) or plain.startswith(" of", found.end())):
            yield from _unless_denied(plain, found.start(), spelled(found[0]))


# ── words ──

FAMILIES: tuple[dict[str, str], ...] = (
    {
        **{w: w for w in words("black white red green blue yellow orange purple pink brown cyan")},
        "gray": "gray",
        "grey": "gray",
    },
    {
        **{w: w for w in words("left right above below behind inside outside")},
        "left of": "left",
        "right of": "right",
        "to the left": "left",
        "to the right": "right",
        "in front of": "in front",
        "in front": "in front",
        "front": "in front",
    },
)
"""Words that exclude each other, and what each means: colours, directions."""
TRUTH = {"yes": "yes", "true": "yes", "correct": "yes", "no": "no", "false": "no", "incorrect": "no"}
_TRUTH_MENTION = re.compile(
    r"\b(?:answer|statement|caption|claim|description|it|that|this)\s+(?:is|must be|would be)\s*+:?\s*+"
    r"\b(yes|no|true|false|correct|incorrect)\b",
    re.IGNORECASE,
)


def _pattern(named: Mapping[str, str]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(word) for word in sorted(named, key=len, reverse=True))
    return re.compile(rf"(?<!\w)({alternatives})(?!\w)", re.IGNORECASE)


def _words(sentence: str, pattern: re.Pattern[str], named: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    for found in pattern.finditer(sentence):
        value = named.get(found[1].casefold())
        if value is not None:
            yield from _unless_denied(sentence, found.start(1), value)


_DENIED = re.compile(
    r"(?:\bnot|n['’]t|\bnever|\brather than|\binstead of|\bnor|\bneither|\bwithout)\s+(?:(?:at|to|the|a|an|option|of)\s+){0,3}\(?$",
    re.IGNORECASE,
)


def _before(text: str, place: int) -> str:
    return text[max(0, place - 40) : place]


def _unless_denied(sentence: str, place: int, value: Any) -> Iterator[tuple[int, Any]]:
    if not _DENIED.search(_before(sentence, place)):
        yield place, value


def _last(found: Iterator[tuple[int, Any]]) -> Any:
    """The value that stands last; None if there is none."""
    return max(found, key=lambda pair: pair[0], default=(0, None))[1]
