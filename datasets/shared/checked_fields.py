"""Values of annotation rows, checked: each taker says where a row is broken, and what was wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_mm.datasets.shared.columns import no_field, shown_keys
from grpo_mm.datasets.shared.row_check import text_problem
from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number, shown

__all__ = [
    "Span", "fill", "shown_keys", "take_duration", "take_field", "take_seconds", "take_span", "take_spans", "take_text",
]  # fmt: skip

Span = tuple[float, float]


def take_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text without blanks around it; ConfigError if it is missing, empty or something else."""
    value = take_field(row, name, where)
    if problem := text_problem(value):
        raise ConfigError(f"{where}: {name!r} is {shown(value)}, {problem}.")
    return value.strip()


def take_field(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise no_field(name, row, where)
    return row[name]


def take_seconds(value: Any, name: str, where: str) -> float:
    seconds = finite_number(value)
    if seconds is None:
        raise ConfigError(f"{where}: {name} is {shown(value)}, wanted a finite number of seconds.")
    return seconds


def take_duration(value: Any, where: str) -> float:
    duration = take_seconds(value, "duration", where)
    if duration <= 0:
        raise ConfigError(f"{where}: duration is {shown(value)}, wanted more than 0 seconds.")
    return duration


def take_span(value: Any, where: str) -> Span:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(f"{where}: {shown(value)} is no span; wanted [start, end] in seconds.")
    return take_seconds(value[0], "start", where), take_seconds(value[1], "end", where)


def take_spans(value: Any, where: str) -> tuple[Span, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: {shown(value)}, wanted a list of [start, end].")
    return tuple(take_span(span, where) for span in value)


def fill(template: str, words: Mapping[str, Any], name: str, where: str) -> str:
    """`template` with its words put in; ConfigError names what there is."""
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{where}: {name} = {shown(template)} wants {shown(error.args[0]) if error.args else error}; there are: "
            f"{', '.join(words)}."
        ) from error
