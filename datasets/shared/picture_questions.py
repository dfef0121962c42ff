"""What the readers of questions about pictures share: options and their letters, templates, ids, missing files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from grpo_mm.datasets.shared.annotated_rows import SUFFIXES, annotated_rows, check_rows, picture
from grpo_mm.datasets.shared.checked_fields import fill
from grpo_mm.datasets.shared.files import check_limit
from grpo_mm.datasets.shared.gathered import RowReader
from grpo_mm.datasets.shared.row_check import row_net, text_problem
from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number, shown
from grpo_mm.types import Prompt

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_TEMPLATE = (
    "{query}\n{options}\nAnswer with the letter of the right option in brackets, within <answer>…</answer>."
)
_LETTERED = re.compile(r"\(?([A-Za-z])[).:]\s*(.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")


@dataclass(frozen=True)
class QuestionRow:
    """A checked row. Example: where = "test.jsonl, line 3", id = "cv_bench/2", choices = ("0", "4"), answer = "(B)"."""

    where: str
    id: str
    query: str
    media: tuple[Any, ...]
    answer: str | None
    """None where the file keeps it back, as test splits do."""
    target: Mapping[str, Any]
    """Further keys of `Prompt.target`, beside "answer" and "choices"."""
    choices: tuple[str, ...] = ()
    """Texts of the options, without letters."""
    words: Mapping[str, Any] = field(default_factory=dict)
    """Further names for the templates."""


@dataclass
class PictureQuestions(RowReader):
    """Base of the readers; they differ in `_questions`.

    target = {"answer": "(B)", "answer_type": "multiple choice", "choices": ["0", "4"], "question_type": …, "benchmark":
    the scorer of whole held-out sets that these questions are for, …}; the right answer in `demo_template` is the prompt's `demo`.
    """

    path: str
    """The file with the questions; for parquet also a folder of such files."""
    folder: str = "."
    """What the names of pictures or videos in the file are relative to."""
    template: str = CHOICE_TEMPLATE
    """str.format with {query}, {options} ("(A) …", each on a line of its own), and what the reader adds."""
    demo_template: str = "<answer>{answer}</answer>"
    unpack: str | None = None
    """A folder to which pictures that lie in the question file are written once; None: they are decoded and kept in memory,
    which takes 3 bytes a pixel."""
    check_files: bool = False
    """Leave out, count and name rows with a picture or video that is not there."""
    limit: int | None = None
    """Only the first prompts, counted after the choices above; None for all."""

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    benchmark: ClassVar[str | None] = None

    def check(self) -> None:
        """Raises ConfigError if the file is not there or a setting is out of range."""
        check_rows(self.path, self.suffixes)
        check_limit(self.limit, self.path)

    def _prompts(self) -> Iterator[tuple[str, Prompt]]:
        for question in self._every_question():
            with row_net(question.where):
                prompt = self._asked(question)
            yield question.where, prompt

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        """The questions of row `number`, counted from 0; most readers have one, some two or none."""
        raise NotImplementedError

    def _every_question(self) -> Iterator[QuestionRow]:
        for number, (where, row) in enumerate(annotated_rows(self.path)):
            with row_net(where, row):
                questions = list(self._questions(row, where, number))
            yield from questions

    def _pictures(self, values: Sequence[Any], where: str) -> tuple[Any, ...]:
        return tuple(picture(value, self.folder, where, unpack=self.unpack) for value in values)

    def _asked(self, question: QuestionRow) -> Prompt:
        words = {"query": question.query, "options": lettered(question.choices), **question.words}
        target = {"answer": question.answer, "choices": list(question.choices), "benchmark": self.benchmark}
        target |= question.target
        answered = words | {"answer": question.answer}
        return Prompt(
            id=question.id,
            text=fill(self.template, words, "template", question.where),
            media=question.media,
            target={name: value for name, value in target.items() if value is not None and value != []},
            demo=None
            if question.answer is None
            else fill(self.demo_template, answered, "demo_template", question.where),
        )


def lettered(choices: Sequence[str]) -> str:
    """("0", "4") -> "(A) 0\\n(B) 4"."""
    return "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices))


def take_choices(value: Any, where: str) -> tuple[str, ...]:
    """Two options or more, each a text; letters that stand before all of them ("A. left") are taken off."""
    given = value if isinstance(value, (list, tuple)) else ()
    texts = [str(item).strip() if _is_option(item) else "" for item in given]
    if not 2 <= len(texts) <= len(LETTERS) or not all(texts):
        raise ConfigError(f"{where}: options are {shown(value)}, wanted a list of 2 to {len(LETTERS)} texts.")
    parts = [_LETTERED.fullmatch(text) for text in texts]
    if all(part and part[1].upper() == letter and part[2] for part, letter in zip(parts, LETTERS)):
        texts = [part[2].strip() for part in parts if part]
    return tuple(texts)


def _is_option(value: Any) -> bool:
    return isinstance(value, bool) or finite_number(value) is not None or not text_problem(value)


def take_letter(value: Any, choices: Sequence[str], where: str) -> str:
    """ "(C)" from "C", "(c)" or "C."; ConfigError if it is the letter of none of the options."""
    found = _LETTER.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or found[1].upper() not in LETTERS[: len(choices)]:
        raise ConfigError(f"{where}: the answer is {shown(value)}, wanted the letter of one of {len(choices)} options.")
    return f"({found[1].upper()})"


def take_whole(value: Any, name: str, where: str) -> int:
    """A whole number, also as a text; ConfigError for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        value = int(value) if len(value) < 100 else None
    if finite_number(value) is None or not isinstance(value, int):
        raise ConfigError(f"{where}: {name} is {shown(value)}, wanted a whole number.")
    return value
