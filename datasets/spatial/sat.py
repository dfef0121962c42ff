"""SAT: how things move when the camera or an object does, on one or two pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from grpo_mm.datasets.shared.checked_fields import take_field, take_text
from grpo_mm.datasets.shared.picture_questions import LETTERS, PictureQuestions, QuestionRow, take_choices
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

Order = Literal["file", "drawn", "circular"]


@dataclass
class Sat(PictureQuestions):
    """Reads rows {"image_bytes": [one or two pictures], "question", "answers": ["left", "right"], "correct_answer":
    "left", "question_type": "ego_movement"}. Ids are "sat/<file stem>/<row number>", with "/0" and "/1" after it for
    `order: circular`.

    target = {"answer": "(A)", "answer_type": "multiple choice", "choices", "question_type"}; for twins also "pair", their
    id without its last part.

    Source: arXiv:2412.07755. Each item of its test of real pictures is asked with both orders of its options, 300 questions
    in all. Grade A for the fields. Uncertain: how the original loader orders more than two options; the twin has them
    reversed here.
    """

    order: Order = "file"
    """Of the options. file: as they stand. drawn: by the row's id, so that the right one has no usual place. circular: twins,
    one as they stand and one reversed."""

    benchmark: ClassVar[str | None] = "sat"

    def check(self) -> None:
        super().check()
        if self.order not in get_args(Order):
            raise ConfigError(f"{self.path}: order = {self.order!r}; wanted one of {', '.join(get_args(Order))}.")

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        name = f"sat/{Path(self.path).stem}/{number}"
        values = take_field(row, "image_bytes", where)
        media = self._pictures(values if isinstance(values, list) else [values], where)
        if not media:
            raise ConfigError(f"{where}: there is no picture in image_bytes.")
        choices, right = take_choices(row.get("answers"), where), take_text(row, "correct_answer", where)
        if choices.count(right) != 1:
            raise ConfigError(
                f"{where}: correct_answer {shown(right)} is not one of the answers {shown(list(choices))}."
            )
        orders = {
            "file": {name: choices},
            "drawn": {name: tuple(random.Random(name).sample(choices, len(choices)))},
            "circular": {f"{name}/0": choices, f"{name}/1": choices[::-1]},
        }[self.order]
        for id, order in orders.items():
            target = {
                "answer_type": "multiple choice",
                "question_type": take_text(row, "question_type", where),
                "pair": name if self.order == "circular" else None,
            }
            answer = f"({LETTERS[order.index(right)]})"
            yield QuestionRow(where, id, take_text(row, "question", where), media, answer, target, choices=order)
