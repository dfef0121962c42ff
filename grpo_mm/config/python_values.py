"""A config written in Python as the plain values that a YAML file would give; objects and functions stay what they are."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown


def as_yaml_would(value: Any, key: str = "") -> Any:
    """A copy with lists for tuples, texts for paths, and numbers of Python for those of numpy.

    Under `rewards` and `watch` a function or a reward object may stand in place of {"use": it}.

    Raises:
        ConfigError: a key that is no text.
    """
    if isinstance(value, Mapping):
        return _copied(value, key)
    if isinstance(value, (list, tuple)):
        return [as_yaml_would(part, f"{key}.{i}") for i, part in enumerate(value)]
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_") and hasattr(value, "item"):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return value


def _copied(mapping: Mapping[Any, Any], key: str) -> dict[str, Any]:
    found = {}
    for name, part in mapping.items():
        if not isinstance(name, str):
            raise ConfigError(f"{key or 'the config'}: the key {shown(name)} is no text.")
        part = as_yaml_would(part, f"{key}.{name}" if key else name)
        if key in ("rewards", "watch") and _is_scorer_alone(part):
            part = {"use": part}
        found[name] = part
    return found


def _is_scorer_alone(part: Any) -> bool:
    return callable(part) and not isinstance(part, str) and not hasattr(part, "use")
