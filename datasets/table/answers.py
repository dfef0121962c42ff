"""What is right, from the columns of a row: answers of any form, options, and how answers are to be compared."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.datasets.shared.picture_questions import LETTERS, take_choices
from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, finite_number, parse_json, shown

TYPES = {
    "multiple choice": "multiple choice", "multi-choice": "multiple choice", "multi choice": "multiple choice", "mcq": "multiple choice",
    "multiple-choice": "multiple choice", "choice": "multiple choice", "yes/no": "multiple choice", "bool": "multiple choice",
    "numerical": "numerical", "number": "numerical", "integer": "numerical", "float": "numerical", "regression": "regression",
    "ocr": "ocr", "free text": "free text", "free-form": "free text", "free form": "free text", "open": "free text",
    "short answer": "short answer", "text": "short answer", "word": "short answer",
    "math": "math", "latex": "math", "expression": "math",
}  # fmt: skip
"""Answer types of data sets, in lower case → ours."""
SHORT_WORDS = 5
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?%?")
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_LETTERED = re.compile(r"\(?([A-Za-z])[).:]\s*(.+)", re.DOTALL)
_ELEMENT = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_FINAL = re.compile(r"(?:\A|\n)####\s*(.+?)\s*\Z", re.DOTALL)
_LINES = re.compile(r"(?:\A|\s)\(?([A-Z])[).:]\s*(.*?)(?=\s\(?[A-Z][).:]\s|\Z)", re.DOTALL)
_OPTION = re.compile(r"\([A-Za-z]\)|[A-Z]\.?")
_TRUTHS = ("yes", "no", "true", "false")


def read_options(row: Mapping[str, Any], columns: Sequence[str], where: str) -> tuple[str, ...]:
    """The options of a row, without letters; () for a row that has none.

    From a list, a mapping from letters, a text of one of these, a text "A. left B. right", or a column for each.

    Raises:
        ConfigError: something else.
    """
    if len(columns) > 1:
        value: Any = [row[c] for c in columns if row.get(c) not in (None, "")]
    else:
        value = row.get(columns[0])
    if isinstance(value, str):
        value = _options_of_text(value)
    if isinstance(value, Mapping):
        value = value.get("text", list(value.values()))
    if value is None or value == []:
        return ()
    return take_choices(value, where)


def read_answer(value: Any, options: Sequence[str], kind: str | None, where: str) -> dict[str, Any]:
    """The part of a target that says what is right: "answer", "answer_type", with options "choices", and "accepted".

    A list with one answer is that answer; with several, all of which are right, the commonest is, and all are "accepted". The answer of a text
    with an element <answer>…</answer>, a last line "#### …" or a \\boxed{…} is what stands there. With options it becomes the
    letter "(B)", from a letter, the text of an option, or its number counted from 0.

    Args:
        kind: how answers are compared, of `TYPES`; None: multiple choice where there are options and for yes and no, numerical for a
            number, short answer for up to five words, else free text.

    Raises:
        ConfigError: no answer, one that is none of the options, or a type that nobody knows.
    """
    answers = _answers(value, where)
    if kind is not None and kind.strip().lower().replace("_", " ") not in TYPES:
        raise ConfigError(
            f"{where}: the answer type {shown(kind)}; wanted one of {', '.join(sorted(set(TYPES.values())))}."
        )
    known = None if kind is None else TYPES[kind.strip().lower().replace("_", " ")]
    if options and known in (None, "multiple choice"):
        letters = list(dict.fromkeys(_letter(answer, options, where) for answer in answers))
        if len(letters) > 1:
            raise ConfigError(f"{where}: {len(letters)} options are right; wanted one.")
        return {"answer": letters[0], "answer_type": "multiple choice", "choices": list(options)}
    texts = list(dict.fromkeys(_said(answer) for answer in answers))
    made = {"answer": texts[0], "answer_type": known or max(map(_type, texts), key=_breadth)}
    return made | ({"accepted": texts} if len(texts) > 1 else {})


def final_answer(text: str) -> str:
    """What a worked solution comes to: its answer element, what follows "####", or what is boxed; else the text."""
    if found := _ELEMENT.findall(text):
        return found[-1].strip()
    if last := _FINAL.search(text):
        return last[1]
    return _boxed(text) or text.strip()


def _answers(value: Any, where: str) -> list[Any]:
    if isinstance(value, Mapping):  # verl's reward_model, SQuAD's answers
        value = next((value[name] for name in ("ground_truth", "answer", "text", "value") if name in value), None)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    given = [one.get("answer") if isinstance(one, Mapping) else one for one in values]  # VQAv2's ten answers
    fine = [
        one
        for one in given
        if finite_number(one) is not None or isinstance(one, bool) or (isinstance(one, str) and one.strip())
    ]
    if not fine or len(fine) < len(given):
        raise ConfigError(f"{where}: the answer is {shown(value)}, wanted a text, a number, or a list of right ones.")
    counts = Counter(map(_said, fine))
    return sorted(fine, key=lambda one: -counts[_said(one)])


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return final_answer(value) if isinstance(value, str) else str(value)


def _letter(value: Any, options: Sequence[str], where: str) -> str:
    said = _said(value)
    same = [i for i, option in enumerate(options) if option.strip().casefold() == said.casefold()]
    index = (
        int(value)
        if finite_number(value) is not None and not isinstance(value, bool) and float(value).is_integer()
        else None
    )
    if index is not None and 0 <= index < len(options) and same and same != [index]:
        raise ConfigError(
            f"{where}: the answer {index} may be the text of the option {LETTERS[same[0]]} or the number of {LETTERS[index]}. Write answers "
            "as letters or texts."
        )
    if len(same) == 1:
        return f"({LETTERS[same[0]]})"
    lettered = _LETTER.fullmatch(said) or _LETTERED.fullmatch(said)
    letter = lettered[1].upper() if lettered else ""
    if letter and letter in LETTERS[: len(options)]:
        return f"({letter})"
    if index is None and said.isdigit() and not same:
        index = int(said)
    if index is not None and 0 <= index < len(options):
        return f"({LETTERS[index]})"
    raise ConfigError(f"{where}: the answer {shown(value)} is none of the options {shown(list(options))}.")


def _type(text: str) -> str:
    if _NUMBER.fullmatch(text):
        return "numerical"
    if text.strip(".").lower() in _TRUTHS or _OPTION.fullmatch(text):
        return "multiple choice"
    return "short answer" if len(text.split()) <= SHORT_WORDS else "free text"


def _breadth(kind: str) -> int:
    return ("numerical", "multiple choice", "short answer", "free text").index(kind)


def _boxed(text: str) -> str:
    at = text.rfind("\\boxed{")
    if at < 0:
        return ""
    depth, start = 0, at + len("\\boxed")
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place].strip()
    return ""


def _options_of_text(text: str) -> Any:
    for read in (parse_json, ast.literal_eval):
        try:
            return read(text.strip())
        except (BadJson, ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if not text.strip():
        return []
    found = _LINES.findall(text)
    if len(found) >= 2 and [letter for letter, _ in found] == list(LETTERS[: len(found)]):
        return [option for _, option in found]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines if len(lines) > 1 else text.split("|")
