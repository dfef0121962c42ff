"""Values of annotation rows, checked: each taker says where a row is broken, and what was wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from grpo_mm.errors import ConfigError

Span = tuple[float, float]


def read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read in UTF-8: {error}.") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}.") from error


def take_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text without blanks around it; ConfigError if it is missing, empty or something else."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {name!r} is {value!r}, wanted a text.")
    return value.strip()


def take_seconds(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{where}: {name} is {value!r}, wanted a finite number of seconds.")
    return float(value)


def take_duration(value: Any, where: str) -> float:
    duration = take_seconds(value, "duration", where)
    if duration <= 0:
        raise ConfigError(f"{where}: duration is {value!r}, wanted more than 0 seconds.")
    return duration


def take_span(value: Any, where: str) -> Span:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(f"{where}: {value!r} is no span; wanted [start, end] in seconds.")
    return take_seconds(value[0], "start", where), take_seconds(value[1], "end", where)


def take_spans(value: Any, where: str) -> tuple[Span, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: {value!r}, wanted a list of [start, end].")
    return tuple(take_span(span, where) for span in value)


def fill(template: str, words: Mapping[str, Any], name: str, where: str) -> str:
    """`template` with its words put in; ConfigError names what there is."""
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{where}: {name} = {template!r} wants {error}; there are: {', '.join(words)}.") from error
