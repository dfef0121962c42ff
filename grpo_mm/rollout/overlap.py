"""Held-out prompts that are trained on as well: the same text about the same media, whatever their ids and file names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpo_mm.types import Prompt


def trained_on(trained: Iterable[Prompt], held_out: Sequence[Prompt]) -> list[Prompt]:
    """Those of `held_out` that also stand in `trained`.

    Texts and earlier turns are compared without regard to blanks, files by what is in them, a video with its part. Media of a
    kind that is neither file nor pixels are the same where they are equal.
    """
    by_text: dict[Any, list[Prompt]] = {}
    for prompt in held_out:
        by_text.setdefault(_words(prompt), []).append(prompt)
    pairs = [(prompt, words) for prompt in trained if (words := _words(prompt)) in by_text]
    both = {words for _, words in pairs}
    asked = [prompt for words in both for prompt in by_text[words]]
    content = _contents([prompt for prompt, _ in pairs] + asked)
    seen = {(words, _media(prompt, content)) for prompt, words in pairs}
    found = {id(prompt) for prompt in asked if (_words(prompt), _media(prompt, content)) in seen}
    return [prompt for prompt in held_out if id(prompt) in found]


def _words(prompt: Prompt) -> tuple[Any, ...]:
    turns = (*((turn["role"], turn["content"]) for turn in prompt.messages), ("user", prompt.text))
    return tuple((role, " ".join(str(text).split())) for role, text in turns)


def _media(prompt: Prompt, content: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(_look(item, content) for item in prompt.media)


def _look(item: Any, content: Mapping[str, Any]) -> Any:
    """Something that is equal for the same picture or video alone."""
    path = getattr(item, "path", None)
    if isinstance(path, str):
        within = [name for name in ("start", "end", "at", "fps") if hasattr(item, name)]
        if not within:  # a picture, which may also lie within a table
            return "encoded", content.get(path, path)
        return type(item).__name__, content.get(path, path), tuple(getattr(item, name) for name in within)
    data = getattr(item, "encoded", item)
    if hasattr(item, "getexif"):
        return "pixels", item.mode, item.size, _digest(item.tobytes())
    if isinstance(data, bytes):
        return "encoded", _digest(data)
    if hasattr(item, "numpy") or hasattr(item, "__array__"):
        import numpy as np

        array = np.ascontiguousarray(item)
        return "pixels", str(array.dtype), array.shape, _digest(array.tobytes())
    try:
        hash(item)
    except TypeError:
        return id(item)
    return item


def _contents(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Path → what tells its file from others. Files are read only where another one, or a picture within a table, has the same size."""
    paths = {path for p in prompts for item in p.media if isinstance(path := getattr(item, "path", None), str)}
    by_size: dict[int, set[str]] = {}
    real: dict[str, str] = {}
    for path in paths:
        real[path] = os.path.realpath(path)
        if os.path.isfile(real[path]):
            by_size.setdefault(os.path.getsize(real[path]), set()).add(real[path])
    within = {
        len(data) for p in prompts for item in p.media if isinstance(data := getattr(item, "encoded", item), bytes)
    }
    alike = {path for size, same in by_size.items() if len(same) > 1 or size in within for path in same}
    found = {path: _of_file(path) for path in alike}
    return {path: found.get(place, place) for path, place in real.items()}


def _of_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
