"""What comes from outside the process (files, servers, rewards, libraries), read with care: JSON, numbers, texts, reasons.

Whatever reads foreign bytes reads them through here, so that a limit is set once and a refusal sounds the same everywhere.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from grpo_mm.errors import ConfigError

LONGEST_SHOWN = 200
"""Characters of a foreign value in a message."""
DEEPEST = 200
"""Levels of nesting that foreign JSON may have."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing: control characters, changes of direction, halves of characters."""


class BadJson(ValueError):
    """Text that is no JSON, or JSON that two readers would take for different things. `line` counts from 1, if known."""

    def __init__(self, reason: str, *, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def parse_json(text: str) -> Any:
    """The value of a JSON text as RFC 8259 has it.

    Raises:
        BadJson: not JSON; NaN or an infinity; a number that no double or no decoder holds; a key that stands twice; half of a
            character (a lone surrogate); nested more than 200 levels.
    """
    start = len(text) - len(text.lstrip(" \t\n\r"))
    value, end = parse_json_at(text, start)
    if rest := text[end:].lstrip(" \t\n\r"):
        extra = json.JSONDecodeError("Extra data", text, len(text) - len(rest))
        raise BadJson(f"not JSON: Extra data at column {extra.colno}", line=extra.lineno)
    return value


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends; what follows is not looked at. Raises BadJson as `parse_json`."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise BadJson(f"not JSON: {error.msg} at column {error.colno}", line=error.lineno) from None
    except RecursionError:
        raise BadJson("nested too deeply") from None
    except BadJson:
        raise
    except ValueError as error:  # a whole number of thousands of digits
        raise BadJson(f"not JSON that can be read: {reason(error)}") from None
    piece = text[start:end]
    if not is_text(piece) or "\\ud" in piece or "\\uD" in piece:
        _no_halves(value)
    if piece.count("[") + piece.count("{") > DEEPEST:
        _not_deep(value)
    return value, end


def finite_number(value: Any) -> float | None:
    """`value` as a float; None for what is no int or float, for True and False, NaN, infinities and 10**400."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_text(text: str) -> bool:
    """Whether it can be written in UTF-8: no half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any, limit: int = LONGEST_SHOWN) -> str:
    """`repr` of a foreign value for a message: bounded, nothing in it that a terminal obeys, and never an exception."""
    try:
        text = repr(value[: limit + 1] if isinstance(value, str) else value)
    except BaseException:
        text = f"<{type(value).__name__} that cannot be shown>"
    return plain(text, limit)


def plain(text: str, limit: int = 10 * LONGEST_SHOWN) -> str:
    """A foreign text for a terminal, a log or a page: control characters escaped (line ends and tabs stay), the rest cut off."""
    more = len(text) - limit
    text = text[:limit] if more > 0 else text
    text = CONTROL.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}", text
    )
    return f"{text}… ({more} more characters)" if more > 0 else text


def as_python(value: Any) -> str:
    """`repr` of plain values for code in a Markdown block: on one line, and no backtick in it ends the block."""
    return repr(value).replace("`", "\\x60")


def reason(error: BaseException, limit: int = 2 * LONGEST_SHOWN) -> str:
    """ "ValueError: what it says", bounded, on one line, whatever `str` of a foreign exception does."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = "without a text that can be shown"
    return plain(f"{type(error).__name__}: {text}" if text else type(error).__name__, limit)


def from_root(name: str) -> str:
    """The whole path of a file or folder that is there, whatever folder is the working one later; else (a hub name) as it is."""
    return os.path.abspath(name) if os.path.exists(name) else name


HOME = re.compile(r"~[\w.-]*(?=/|$)")


def expanded(text: str) -> str:
    """A text that begins with `~` or `~user` (alone, or before a `/`) with the home folder in its place; else as it is.

    So is one whose user nobody knows, and `./~x`, which names a folder of that name.
    """
    return os.path.expanduser(text) if HOME.match(text) else text


VARIABLE = re.compile(r"(?:^|(?<=/))\$(?:\{[\w.:,-]+\}|[A-Z_][A-Z0-9_]*)(?=/|$)")


def variable_in(text: str) -> str | None:
    """The first part of a path that is a variable of a shell or of another tool ($HOME, ${USER}, ${oc.env:X}); else None."""
    if "$" not in text or (any(map(str.isspace, text)) and text[0] not in "/~.$"):
        return None
    found = VARIABLE.search(text)
    return found and found[0]


def place(text: str | Path, *, what: str) -> Path:
    """The path that a user's text names, `~` expanded; `what` is the setting or argument that it comes from.

    Raises:
        ConfigError: no path (NUL, half of a character), or `~name` of nobody where there is no such folder either.
    """
    text = expanded(str(text))
    if "\0" in text or not is_text(text):
        raise ConfigError(f"{what} is {shown(text)}, which can be no path.")
    variable = variable_in(text)
    if variable and not os.path.lexists(text[: text.index(variable) + len(variable)]):
        raise ConfigError(
            f"{what} is {shown(text)}: {plain(variable, 80)} is not filled in here. Write what it stands for, or let the shell do it."
        )
    first = text.partition("/")[0]
    if HOME.match(text) and not os.path.lexists(first):
        raise ConfigError(
            f"{what} is {shown(text)}: there is no user {shown(first[1:])}. Write ./{plain(first)} for a folder of that name."
        )
    return Path(text)


def _no_constant(name: str) -> Any:
    raise BadJson(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadJson(f"the number {plain(text, 40)} is larger than a float holds")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise BadJson(f"the key {shown(twice)} stands twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)


def _levels(value: Any):  # noqa: ANN202
    """Lists of values, level by level, keys among them; without recursion."""
    level = [value]
    while level:
        yield level
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                below += one
        level = below


def _no_halves(value: Any) -> None:
    for level in _levels(value):
        for one in level:
            if isinstance(one, str) and not is_text(one):
                raise BadJson(f"{shown(one)} holds half of a character (a lone surrogate)")


def _not_deep(value: Any) -> None:
    for depth, _ in enumerate(_levels(value)):
        if depth > DEEPEST:
            raise BadJson(f"nested more than {DEEPEST} levels")
