"""Sentences of a reasoning, what it says before its answer, and which sentences speak of something visible."""

from __future__ import annotations

import re
from collections.abc import Collection

from grpo_mm.rewards.answers.tags import find_last
from grpo_mm.rewards.text.text_overlap import words

_TAGS = re.compile(r"<\s?/?\s?(?:think|rethink|glue|answer)\s?>", re.IGNORECASE)
_END = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")


def reasoning_and_answer(text: str, *, tag: str = "answer") -> tuple[str, str] | None:
    """What stands before the last `tag` element, without the tags of templates, and what that element holds.

    None where there is no such element. Boxes and other elements stay in the reasoning.
    """
    found = find_last(text, tag)
    if found is None:
        return None
    return _TAGS.sub(" ", text[: found.tag]).strip(), text[found.start : found.end].strip()


def sentences(text: str) -> list[str]:
    """Split after . ! ? ; that a blank follows, and at line ends; empty ones are left out. "3.5" and "[1, 2]" stay whole."""
    return [part.strip() for part in _END.split(text) if part and part.strip()]


COLORS = frozenset(
    words(
        "black white gray grey red green blue yellow orange purple pink brown cyan magenta beige golden silver dark light"
    )
)
SPATIAL = frozenset(
    words("""left right above below top bottom behind front back inside outside near nearer nearest far farther farthest close
    closer closest between beside next under over on middle center centre corner edge side foreground background facing
    towards upper lower horizontal vertical adjacent overlaps touching""")
)
SEEN = frozenset(
    words("""image picture photo frame scene visible see seen shows shown shown depicts appears located positioned object objects
    box bbox bounding region area person people man woman child boy girl hand face head car bus truck bike bicycle road
    street building house door window wall floor table chair sofa bed desk cup bottle plate bowl food dog cat bird horse tree
    sky grass water shirt hat sign text letter screen book bag ball circle square triangle shape color colour wearing holding
    standing sitting""")
)
_COORDINATES = re.compile(r"[\[(]\s*+\d++(?:\.\d++)?+\s*+,")
_ABOUT_THE_THINKING = re.compile(
    r"(?:(?:ok(?:ay)?|so|well|now|then|first|next|finally)\b[\s,:]*+){0,3}(?:"
    r"let(?:'s|’s| me| us)\b|(?:i|we)\s+(?:will|should|need|must|have to|want|can now|am going|are going|am not sure)\b|"
    r"(?:i|we)(?:'ll|’ll|'m|’m)\b|to\s+(?:answer|determine|find|solve|decide|work)\b|"
    r"(?:therefore|thus|hence|in conclusion|in summary|overall|to conclude|consequently)\b|"
    r"the\s+(?:final\s+|correct\s+)?(?:answer|option|choice|question)\b|"
    r"(?:maybe|perhaps|possibly|probably|hmm|wait|it\s+(?:might|may|could)|this\s+(?:might|may|could))\b)",
    re.IGNORECASE,
)
_LITTLE = frozenset(
    words("what where which when does have that this there from with many much these those they are the")
)


def speaks_of_the_visible(sentence: str, *, also: Collection[str] = ()) -> bool:
    """Whether a sentence may hold a claim about a picture: it does not open by planning, concluding or hedging, and it names
    an object, a colour, a place or coordinates.

    Args:
        also: further words that count, in lower case, such as those of the question.

    Source: arXiv:2604.08476 (Faithful GRPO), the filter before the judge. Grade B. The lists of words are ours.
    """
    if _ABOUT_THE_THINKING.match(sentence.lstrip(" -*•")):
        return False
    said = set(words(sentence))
    said |= {word[:-1] for word in said if word.endswith("s")}
    return bool(said & COLORS or said & SPATIAL or said & SEEN or said & set(also)) or bool(
        _COORDINATES.search(sentence)
    )


def content_words(text: str) -> set[str]:
    """Words of a question that a claim about its picture may repeat: longer than three letters, no function words."""
    return {word for word in words(text) if len(word) > 3 and word not in _LITTLE}
