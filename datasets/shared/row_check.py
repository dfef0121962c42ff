"""What every row of every reader must be: read without an exception, its texts texts, its numbers numbers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from grpo_mm.datasets.shared.columns import Row, about_missing
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import finite_number, is_text, plain, reason, shown
from grpo_mm.types import Prompt

DEEPEST = 200
"""Levels of nesting of a target."""


@contextmanager
def row_net(where: str, row: Any = None) -> Iterator[None]:
    """Whatever reading a row raises becomes a ConfigError that begins with `where`, "file, line 3"; no message is longer than what
    `plain` leaves of it. Where `row` has not the column that it was asked for last, the message says which columns there are."""
    try:
        yield
    except UserError as error:
        said = plain(str(error)) + _about_columns(row, str(error))
        if said == str(error):
            raise
        raise ConfigError(said) from error
    except Exception as error:
        raise ConfigError(
            f"{where}: this row cannot be read ({reason(error)}).{_about_columns(row, reason(error))}"
        ) from error


def _about_columns(row: Any, said: str) -> str:
    """For a failure that comes of the column that the row was asked for last, and has not."""
    missed = row.missed if isinstance(row, Row) else None
    if missed is None or "; found " in said or not ("None" in said or str(missed) in said):
        return ""
    return f" There is {about_missing(missed, row)}"


def text_problem(value: Any) -> str:
    """Why a value is no text that a model can be asked; "" if it is one."""
    if not isinstance(value, str):
        return "wanted a text"
    if not is_text(value):
        return "it holds half of a character (a lone surrogate), which no tokenizer reads"
    if "\0" in value:
        return "it holds a NUL character"
    if not any(_is_seen(character) for character in value):
        return "wanted a text that says something"
    return ""


def take_id(row: Mapping[str, Any], name: str, where: str, *, default: int | None = None) -> str:
    """The id of a row as a text: a text or a whole number. `default` is that of a row without one, or with null."""
    value = row.get(name)
    if value is None and default is not None:
        return str(default)
    number = finite_number(value)
    if number is not None and number.is_integer():
        return str(value)
    if text_problem(value) or "\n" in value or "\r" in value:
        raise ConfigError(f"{where}: {name!r} is {shown(value)}, wanted a text of one line or a whole number.")
    return value


def checked_prompt(prompt: Prompt, where: str) -> Prompt:
    """`prompt` as it is; raises ConfigError for a text that is none, and for NaN and infinities in its target."""
    texts = {"text": prompt.text, "id": prompt.id}
    texts |= {f"turn {number}": turn["content"] for number, turn in enumerate(prompt.messages)}
    texts |= {"demonstration": prompt.demo} if isinstance(prompt.demo, str) and prompt.demo else {}
    for name, text in texts.items():
        if name.startswith("turn") and text == "":
            continue
        if problem := text_problem(text):
            raise ConfigError(f"{where}: its {name} is {shown(text)}: {problem}.")
    if problem := _value_problem(prompt.target):
        raise ConfigError(f"{where}: {problem}; a reward could not compare with it.")
    return prompt


def _is_seen(character: str) -> bool:
    """Neither a blank, nor a control or formatting character, such as a mark of byte order."""
    return character.isalnum() or unicodedata.category(character) not in ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs")


def _value_problem(target: Any) -> str:
    level, depth = [("", target)], 0
    while level:
        below: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, float) and not math.isfinite(value):
                return f"its target{name and f' {name}'} holds {value}"
            if isinstance(value, str) and not is_text(value):
                return f"its target{name and f' {name}'} holds half of a character, {shown(value)}"
            if isinstance(value, Mapping):
                below += [(name or shown(key), one) for key, one in value.items()]
            elif isinstance(value, (list, tuple)):
                below += [(name, one) for one in value]
        level, depth = below, depth + 1
        if depth > DEEPEST:
            return f"its target is nested more than {DEEPEST} levels"
    return ""
