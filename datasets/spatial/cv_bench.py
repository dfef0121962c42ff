"""CV-Bench: counting and relations in the plane, depth and distance in space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from grpo_mm.datasets.shared.checked_fields import take_field, take_text
from grpo_mm.datasets.shared.picture_questions import PictureQuestions, QuestionRow, take_choices, take_letter
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

TYPES = ("2D", "3D")


@dataclass
class CvBench(PictureQuestions):
    """Reads rows {"idx", "type": "2D", "task": "Count", "question", "choices": ["0", "4"], "answer": "(B)", "prompt",
    "filename": "img/2D/count/ade20k_1.png", "source": "ADE20K", …}; parquet has the picture itself in "image". Ids are
    "cv_bench/<idx>".

    target = {"answer": "(B)", "answer_type": "multiple choice", "choices", "question_type": "count", "task": "Count",
    "type": "2D", "image_source": "ADE20K", "bbox"}; {prompt} in the template is their own wording with the options.

    Source: arXiv:2406.16860. Grade A for the fields. Uncertain: the form of "bbox", which is therefore kept as it is written
    and is no "boxes".
    """

    types: tuple[str, ...] = TYPES
    """2D, 3D, or both."""

    benchmark: ClassVar[str | None] = "cv_bench"
    leaves: ClassVar[tuple[str, ...]] = ("filename",)

    def check(self) -> None:
        super().check()
        if not self.types or set(self.types) - set(TYPES):
            raise ConfigError(f"{self.path}: types = {list(self.types)}; wanted {' or '.join(TYPES)}, or both.")

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        kind, task = take_text(row, "type", where), take_text(row, "task", where)
        if kind not in TYPES:
            raise ConfigError(f"{where}: type is {shown(kind)}, wanted one of {', '.join(TYPES)}.")
        if kind not in self.types:
            return
        take_field(row, "idx", where)
        choices = take_choices(row.get("choices"), where)
        seen = row.get("image") if row.get("image") is not None else row.get("filename")
        yield QuestionRow(
            where,
            f"cv_bench/{take_id(row, 'idx', where)}",
            take_text(row, "question", where),
            self._pictures([seen], where),
            take_letter(row.get("answer"), choices, where),
            {
                "answer_type": "multiple choice",
                "question_type": task.lower(),
                "task": task,
                "type": kind,
                "image_source": take_text(row, "source", where),
                "bbox": row.get("bbox"),
            },
            choices=choices,
            words={"prompt": take_text(row, "prompt", where) if row.get("prompt") else ""},
        )
