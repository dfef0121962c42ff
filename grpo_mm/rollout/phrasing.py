"""How a source of prompts asks a question: what stands around a text of one's own so that it reads as those of training do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Way = str | Callable[[str], str]
"""A template in which a name stands for the question, or a function of the question."""


def way_of(reader: Any) -> Way | None:
    """Its `phrase(text)` or its `template`; of a reader that wraps another (`of`) that one's. None: texts stand as they are."""
    while reader is not None:
        for way in (getattr(reader, "phrase", None), getattr(reader, "template", None)):
            if callable(way) or isinstance(way, str):
                return way
        reader = getattr(reader, "of", None)
    return None


def template_of(way: Way | None) -> str | None:
    """The way as a text with {query} in it, or another name; None where nothing stands around the question."""
    text = way("{query}") if callable(way) else way
    return None if text == "{query}" else text
