"""What the commands print: nothing that a terminal obeys, no markup from names, and a bounded length."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from grpo_mm.tools.console import before_after
from grpo_mm.tools.plain_output import LONGEST, PlainFormatter, say, say_error

EVIL = "x[/red]\x1b[31m\x07\u202e:smile:[bold]"


def test_names_are_no_markup_and_steer_no_terminal(capsys):
    scores = {"score": 0.5, EVIL: 1.0, "odd": "text", "none": None}
    summary = {
        "steps": 3,
        "eval_before": scores,
        "eval_after": scores,
        "seconds": {"train": 1.0, "eval": 2.0},
        "product": EVIL,
    }
    before_after(summary, Path("runs/[lr3]"), Path("report.html"))
    said = capsys.readouterr().out
    assert (
        "x[/red]\\x1b[31m\\x07\\u202e:smile:[bold]" in said.replace("\n", "")
        and "runs/[lr3]" in said
        and "\x1b[31m" not in said
    )


@pytest.mark.parametrize(
    "summary", [{}, {"eval_after": None, "seconds": None}, {"eval_after": {"a": 1.0}}, {"seconds": {"train": "x"}}]
)
def test_a_summary_without_its_parts_is_no_error(summary, capsys):
    before_after(summary, Path("runs/x"), Path("report.html"))
    assert "report.html" in capsys.readouterr().out


def test_log_records_are_plain_and_bounded():
    try:
        raise ValueError("\x1b]0;owned\x07" + "y" * 5_000_000)
    except ValueError:
        record = logging.LogRecord("grpo_mm", logging.WARNING, "f", 1, "reward %s: \x1b[2J", (EVIL,), sys.exc_info())
    said = PlainFormatter("%(levelname)s %(message)s").format(record)
    assert (
        "\x1b" not in said
        and "\x07" not in said
        and len(said) < 2 * LONGEST
        and said.startswith("WARNING reward x[/red]")
    )


def test_lines_and_errors_are_plain(capsys):
    say(f"line {EVIL} \udcff")
    say_error("Error: " + "\x1b" * 10 + "z" * 10**6 + " do this")
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and len(said.err) < 2 * LONGEST and said.err.endswith(" do this\n")
