"""Where in a text pictures and videos stand: the markers of all tool kits as <image> and <video>, and the media in their order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from grpo_mm.errors import ConfigError
from grpo_mm.media_words import MARKER
from grpo_mm.outside import shown

Kind = Literal["image", "video"]
_THEIRS = re.compile(
    r"<\|vision_start\|><\|(image|video)_pad\|><\|vision_end\|>"
    r"|<\|?(image|img|video)(?:[ _-]?(\d+))?\|?>"
    r"|<\|?(image|video)[_-]?(?:pad|placeholder|here|token|soft_token)\|?>"
    r"|<(start_of_image)>"
    r"|\[(img|image|video)(?:[ _]?(\d+))?\]",
    re.IGNORECASE,
)


def place_media(
    texts: Sequence[str], found: Mapping[Kind, Sequence[Any]], where: str
) -> tuple[list[str], tuple[Any, ...]]:
    """The texts of the questions with markers <image> and <video> for those of any tool kit, and the media as their markers come.

    Without a marker all pictures come first, then the videos. Markers with numbers (<image_2>, <|image_2|>, <image 2>) say which
    one is meant, counted from 1, or from 0 if one is 0; each may stand several times.

    Raises:
        ConfigError: other markers than media, or one that says that a picture, video or sound stands there in another way.
    """
    told, marks = [], []
    for text in texts:
        parts, at = [], 0
        for match in _THEIRS.finditer(text):
            kind: Kind = "video" if "video" in match[0].lower() else "image"
            number = match[3] or match[7]
            marks.append((kind, None if number is None else int(number)))
            parts += [text[at : match.start()], f"<{kind}>"]
            at = match.end()
        told.append("".join([*parts, text[at:]]))
        if left := next((m for m in MARKER.finditer(told[-1]) if m[0] not in ("<image>", "<video>")), None):
            raise ConfigError(
                f"{where}: its text says {shown(left[0], 80)}, which nobody replaces by a picture, video or sound. Put <image> or "
                "<video> where the media of the row stand."
            )
    if not marks:
        return told, (*found["image"], *found["video"])
    return told, _in_order(marks, found, where)


def _in_order(
    marks: Sequence[tuple[Kind, int | None]], found: Mapping[Kind, Sequence[Any]], where: str
) -> tuple[Any, ...]:
    numbers: dict[Kind, set[int | None]] = {"image": set(), "video": set()}
    for kind, number in marks:
        numbers[kind].add(number)
    for kind, items in found.items():
        count = sum(mark[0] == kind for mark in marks)
        if numbers[kind] and None not in numbers[kind]:
            first = 0 if 0 in numbers[kind] else 1
            if numbers[kind] != set(range(first, first + len(items))):
                raise ConfigError(
                    f"{where}: its text names {kind}s {sorted(numbers[kind])}, but the row has {len(items)}."
                )
        elif count != len(items) or len(numbers[kind]) > 1:
            raise ConfigError(f"{where}: {count} markers <{kind}> for {len(items)} files.")
    left = {kind: list(items) for kind, items in found.items()}
    first_of = {kind: 0 if 0 in numbers[kind] else 1 for kind in numbers}
    return tuple(
        left[kind].pop(0) if number is None else found[kind][number - first_of[kind]] for kind, number in marks
    )
