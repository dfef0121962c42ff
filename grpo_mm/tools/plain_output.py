"""Everything that the commands print and log goes through here: nothing in it that a terminal obeys, and of bounded length."""

from __future__ import annotations

import logging
import sys
from typing import Any

import typer

from grpo_mm.outside import plain

LONGEST = 4000
"""Characters of an error or a log record: a setting or an exception that it quotes may be a whole file."""
LONGEST_OUTPUT = 2 * 10**6
"""Of what a command is asked to print, such as a config or an answer."""


def say(text: Any, *, err: bool = False) -> None:
    """Prints a line, whatever stands in it."""
    typer.echo(plain(str(text), LONGEST_OUTPUT).encode("utf-8", "replace").decode(), err=err)


def say_error(text: str) -> None:
    """Prints an error to the standard error stream; of a long one the start and the end, where the advice stands."""
    print(shortened(text), file=sys.stderr)


def shortened(text: str, limit: int = LONGEST) -> str:
    """Start and end of a long text, plain."""
    if len(text) > limit:
        return f"{plain(text[: limit // 2], limit)} … {plain(text[-limit // 2 :], limit)}"
    return plain(text, limit)


class PlainFormatter(logging.Formatter):
    """For every handler of the commands: names, exceptions and answers of others are quoted in log records."""

    def format(self, record: logging.LogRecord) -> str:
        return shortened(super().format(record))
