"""MMVP: one question on two pictures that CLIP takes for the same, with opposite answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from grpo_mm.datasets.shared.checked_fields import take_text
from grpo_mm.datasets.shared.picture_questions import (
    LETTERS,
    PictureQuestions,
    QuestionRow,
    take_choices,
    take_letter,
    take_whole,
)
from grpo_mm.datasets.shared.row_files import check_columns
from grpo_mm.errors import ConfigError

_MARK = re.compile(r"\(([a-z])\)")


COLUMNS = ("index", "question", "options", "correct answer", "image")


@dataclass
class Mmvp(PictureQuestions):
    """Reads Questions.csv with the columns Index, Question, Options "(a) Open (b) Closed" and Correct Answer "(a)"; the
    picture is <folder>/<index>.jpg, or "image" where a row has one. Ids are "mmvp/<index>".

    target = {"answer": "(A)", "answer_type": "multiple choice", "choices", "pair": "mmvp/pair/1"}: questions 1 and 2 are
    the first pair, 3 and 4 the second. Answers are read as published.

    Source: arXiv:2401.06209. Size and pairing from the data card, not from the paper.
    """

    picture_suffix: str = ".jpg"
    """Ending of the pictures' file names, where rows do not name them."""

    benchmark: ClassVar[str | None] = "mmvp"

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        names = [str(name).strip().lower().replace("_", " ") for name in row]
        check_columns(names, where)
        row = {name: row[column] for name, column in zip(names, list(row)) if name in COLUMNS}
        index = take_whole(row.get("index"), "index", where)
        if index < 1:
            raise ConfigError(f"{where}: index is {index}, wanted 1 or more.")
        options = row.get("options")
        choices = take_choices(_split(options) if isinstance(options, str) else options, where)
        seen = row.get("image") if row.get("image") is not None else f"{index}{self.picture_suffix}"
        yield QuestionRow(
            where,
            f"mmvp/{index}",
            take_text(row, "question", where),
            self._pictures([seen], where),
            take_letter(row.get("correct answer"), choices, where),
            {"answer_type": "multiple choice", "pair": f"mmvp/pair/{(index + 1) // 2}"},
            choices=choices,
        )


def _split(options: str) -> list[str]:
    """ "(a) Open (b) Closed" -> ["Open", "Closed"]; [] unless the letters come in their order."""
    head, *parts = _MARK.split(options)
    letters, texts = parts[::2], [text.strip() for text in parts[1::2]]
    return texts if not head.strip() and "".join(letters).upper() == LETTERS[: len(letters)] else []
