"""Elements that a text is made of, <answer>…</answer> and the like: which one counts, and what it holds.

Upper and lower case are alike, and a tag may have blanks in it ("</ Answer>"), so that an answer is read however it is
wrapped; `tag_format` wants tags as they are. Every function takes time in proportion to the length of the text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Element(NamedTuple):
    """Example: in "so <a>x</a>" the element a is Element(3, 6, 7): where its tag starts, and what it holds."""

    tag: int
    start: int
    end: int


def last_element(text: str, tag: str) -> str | None:
    """What the last `<tag>…</tag>` holds; None if no opening tag is followed by a closing one."""
    found = find_last(text, tag)
    return None if found is None else text[found.start : found.end]


def find_last(text: str, tag: str) -> Element | None:
    """Where the last `<tag>…</tag>` stands: the last opening tag that a closing one follows, up to the first of these."""
    opened: tuple[int, int] | None = None
    found = None
    for one in _tags(tag).finditer(text):
        if not one[1]:
            opened = one.span()
        elif opened is not None:
            found = Element(*opened, one.start())
            opened = None
    return found


def tagged_text(text: str, tag: str | None, *, require_tag: bool = False) -> str:
    """The text of the last `tag` element; without one, the entire text, or "" if the tag is required."""
    inner = last_element(text, tag) if tag else text
    return ("" if require_tag else text) if inner is None else inner


def answer_text(text: str, tag: str | None) -> str:
    """The text of the last `tag` element; without one, what follows the thinking, which is no answer: "" if that has no end.

    No tag: the entire text.
    """
    inner = last_element(text, tag) if tag else text
    return after_thinking(text) if inner is None else inner


def after_thinking(text: str) -> str:
    """What follows the last </think>, or the entire text if nothing was thought; "" if a thought has no end."""
    end, is_open = 0, False
    for one in _tags("think").finditer(text):
        if one[1]:
            end, is_open = one.end(), False
        else:
            is_open = True
    return "" if is_open else text[end:]


def left_open(prompt: str) -> str:
    """The tag that a chat template opens at the end of a prompt, with what follows it ("<think>\\n"); "" if it opens none."""
    found = _OPENED.search(prompt)
    return found[0] if found else ""


_OPENED = re.compile(r"<[A-Za-z][\w-]{0,30}>\s{0,8}\Z")


@lru_cache(maxsize=64)
def _tags(tag: str) -> re.Pattern[str]:
    return re.compile(rf"<\s{{0,3}}(/?)\s{{0,3}}{re.escape(tag)}\s{{0,3}}>", re.IGNORECASE)
