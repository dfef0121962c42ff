"""BLINK: fourteen tasks of seeing, on one to four pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from grpo_mm.datasets.shared.annotated_rows import SUFFIXES, annotated_rows
from grpo_mm.datasets.shared.checked_fields import take_text
from grpo_mm.datasets.shared.picture_questions import LETTERS, PictureQuestions, QuestionRow, take_choices, take_letter
from grpo_mm.datasets.shared.row_check import checked_prompt, row_net
from grpo_mm.datasets.shared.row_files import check_file, read_json
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt

HIDDEN = "hidden"
"""The answer of every row of the test split."""
_IDX = re.compile(r"(?:val|test|dev)_(.+)_\d+")


@dataclass
class Blink(PictureQuestions):
    """Reads rows {"idx": "val_Spatial_Relation_1", "sub_task": "Spatial_Relation", "question", "prompt", "choices": ["yes",
    "no"], "answer": "(B)", "image_1", …, "image_4"}. Ids are "blink/<idx>".

    target = {"answer": "(B)", "answer_type": "multiple choice", "choices", "question_type" and "task": the sub-task};
    without "answer" where it is hidden. {prompt} is their own wording, which tells the pictures apart and lists the options.

    Source: arXiv:2404.12390. Grade A.
    """

    template: str = "{prompt}\nAnswer with the letter of the right option in brackets, within <answer>…</answer>."

    benchmark: ClassVar[str | None] = "blink"

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        name, query = take_text(row, "idx", where), take_text(row, "question", where)
        task = _task(row, name, where)
        choices = take_choices(row.get("choices"), where)
        options = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices))
        seen = [row[key] for key in (f"image_{n}" for n in range(1, 5)) if row.get(key) is not None]
        if not seen:
            raise ConfigError(f"{where}: there is no picture in image_1 to image_4.")
        answer = row.get("answer")
        yield QuestionRow(
            where,
            f"blink/{name}",
            query,
            self._pictures(seen, where),
            None if answer in (HIDDEN, None) else take_letter(answer, choices, where),
            {"answer_type": "multiple choice", "question_type": task, "task": task},
            choices=choices,
            words={"prompt": take_text(row, "prompt", where) if row.get("prompt") else f"{query}\n{options}"},
        )


@dataclass
class BlinkAnswers:
    """What is right, and of which sub-task, from a file of `Blink` or from a published file of outputs, {"val": [{"idx",
    "answer": "(B)", …}, …], "test": […]}; to score predictions against, with no pictures and no question.

    Rows whose answer is hidden are left out.
    """

    path: str

    def check(self) -> None:
        check_file(self.path, SUFFIXES)

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a broken row, a repeated idx, or a file without an answer."""
        self.check()
        found: dict[str, Prompt] = {}
        for where, row in self._rows():
            with row_net(where, row):
                prompt = self._prompt(row, where)
            if prompt is not None and prompt.text in found:
                raise ConfigError(f"{where}: the idx {shown(prompt.text)} stands twice.")
            found |= {} if prompt is None else {prompt.text: prompt}
        if not found:
            raise ConfigError(f"{self.path}: there is no row whose answer is known; use the outputs of the val split.")
        return list(found.values())

    def _prompt(self, row: Mapping[str, Any], where: str) -> Prompt | None:
        """None where the answer is hidden."""
        name, answer = take_text(row, "idx", where), take_text(row, "answer", where)
        if answer == HIDDEN:
            return None
        choices = row.get("choices") and list(take_choices(row["choices"], where))
        target = {
            "answer": take_letter(answer, choices or LETTERS, where),
            "task": _task(row, name, where),
            "benchmark": Blink.benchmark,
        }
        prompt = Prompt(f"blink/{name}", name, target=target | ({"choices": row["choices"]} if choices else {}))
        return checked_prompt(prompt, where)

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        splits = read_json(self.path) if Path(self.path).suffix == ".json" else None
        if not isinstance(splits, dict):
            yield from annotated_rows(self.path)
            return
        for split, rows in splits.items():
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ConfigError(f"{self.path}, {split}: found {shown(rows)}, wanted a list of objects.")
            yield from ((f"{self.path}, {split}, entry {number}", row) for number, row in enumerate(rows))


def _task(row: Mapping[str, Any], idx: str, where: str) -> str:
    return take_text(row, "sub_task", where) if row.get("sub_task") else sub_task(idx, where)


def sub_task(idx: str, where: str) -> str:
    """ "val_Spatial_Relation_1" -> "Spatial_Relation"."""
    found = _IDX.fullmatch(idx)
    if found is None:
        raise ConfigError(
            f"{where}: idx {shown(idx)} names no sub-task; wanted val_Spatial_Relation_1, or a field sub_task."
        )
    return found[1]
