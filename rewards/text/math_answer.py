"""Is a mathematical answer the right one? Compared by value, in LaTeX or plain writing, by the package math-verify."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.rewards.answers.writing import normal_form
from grpo_mm.rewards.text.short_answer import same_short_answer

LONGEST = 200
"""Characters of an answer that is read as mathematics; a longer one is compared by its words."""
_HEAVY = re.compile(
    r"""
    \\(?:i*o?int|sum|prod|lim|d?t?binom)\b | ! | \d{16} |        # what is worked out rather than read
    (?:\^|\*\*)\s*\{?\s*-?\d{4} |                                # 2^{1000000}
    (?:\^|\*\*)\s*(?:\{[^{}]*|\([^()]*|-?\w+?)(?:\^|\*\*) |       # a tower: 9^{9^9}, 9^9^9
    (?:\}|\))\s*(?:\^|\*\*)[^+\-]*(?:\}|\))\s*(?:\^|\*\*)         # ((9^9)^9)^9
    """,
    re.VERBOSE,
)
_AROUND = re.compile(r"^\s*(?:\$\$?|\\\(|\\\[)(.*?)(?:\$\$?|\\\)|\\\])\s*\.?\s*$", re.DOTALL)
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|\w))")
_SIGNS = {
    "π": r"\pi ",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "−": "-",
}
_TEXT = re.compile(r"\\(?:text|textrm|textbf|mathrm|mbox)\{([^{}]*)\}")
_UNIT = re.compile(
    r"(?<=[\d}%)])(?:\s|~|\\[,;:! ])*(?:\\(?:text|textrm|mathrm|mbox)\{\s*[^{}\d]+\})(?:\^\{?\d\}?)?\s*$"
)


def check_math_verify() -> None:
    """Raises UserError where the package is not installed."""
    if find_spec("math_verify") is None:
        raise UserError('answers of the type math are compared by math-verify: pip install "grpo_mm[math]".')


def same_math(prediction: str, answer: str) -> float:
    r"""1 if both are the same as short answers, or as mathematics, else 0: "\frac{1}{2}" is "1/2" is "0.5", "2\sqrt{3}" is "\sqrt{12}",
    "30^\circ" is "30", "x = 3" is "3", "5 \text{ cm}" is "5"; "1.414" is not "\sqrt{2}", "5 \text{ cm}" is not "5 \text{ m}".

    What could take for ever to work out (towers of powers, factorials, sums, numbers of 16 digits and more) and what is longer than 200
    characters is compared by its words alone.

    Raises:
        UserError: math-verify is not installed.

    Source: math-verify 0.9 (Hugging Face), its defaults; without its alarm clock, which works in the main thread only. Ours: the unit of
    one that the other does not have is left out.
    """
    check_math_verify()
    own, other = _bare(prediction), _bare(answer)
    if same_short_answer(_words(own), _words(other)):
        return 1.0
    units = {"".join(_words(unit[0]).split()) for text in (own, other) if (unit := _UNIT.search(text))}
    if len(units) > 1:
        return 0.0
    own, other = _UNIT.sub("", own), _UNIT.sub("", other)
    if not own or not other or any(len(text) > LONGEST or _HEAVY.search(text) for text in (own, other)):
        return 0.0
    parse, verify = _package()
    read = [parse(f"${text}$", parsing_timeout=None) for text in (other, own)]
    return float(all(read) and bool(verify(*read, timeout_seconds=None)))


def _bare(text: str) -> str:
    """Without the signs around mathematics."""
    text = normal_form(text).strip().rstrip(".")
    inner = _AROUND.match(text)
    text = (inner[1] if inner and "$" not in inner[1] else text).strip()
    text = _ROOT.sub(r"\\sqrt{\1\2}", text)
    return "".join(_SIGNS.get(sign, sign) for sign in text)


def _words(text: str) -> str:
    return _TEXT.sub(r"\1", text)


@functools.cache
def _package() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # else it says that there is no alarm clock
    return parse, verify
