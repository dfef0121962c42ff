"""What to do where the weights of a reward could not be loaded: which of its settings could name a local copy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

SHORTEST = 3


def with_settings(said: str, reward: Any, *, key: str) -> str:
    """A message with the dotted keys, below `key`, of settings whose text stands in it and that name nothing on this machine."""
    found = [name for name, text in _texts(reward, key) if text in said and not os.path.exists(text)]
    if not found:
        return f"{key}: {said}"
    said = said if said.endswith((".", "!", "?")) else f"{said}."
    where = " or ".join(f"{name}=PATH" for name in dict.fromkeys(found))
    return f"{key}: {said} If a copy lies on this machine, name its folder or file: {where}."


def _texts(thing: Any, key: str) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of all settings that are texts, those of components within included."""
    if isinstance(thing, str):
        if len(thing) >= SHORTEST:
            yield key, thing
    elif isinstance(thing, Mapping):
        for name, part in thing.items():
            yield from _texts(part, f"{key}.{name}")
    elif is_dataclass(thing) and not isinstance(thing, type):
        for field in fields(thing):
            if field.init:
                yield from _texts(getattr(thing, field.name, None), f"{key}.{field.name}")
