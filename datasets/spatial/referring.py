"""Referring expressions: one phrase, one box, in the form of RefCOCO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from grpo_mm.datasets.shared.annotated_boxes import BOX_FORMS, BoxForm, box_problem, take_box, take_size
from grpo_mm.datasets.shared.checked_fields import take_field
from grpo_mm.datasets.shared.picture_questions import PictureQuestions, QuestionRow
from grpo_mm.datasets.shared.row_check import take_id, text_problem
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown


@dataclass
class Referring(PictureQuestions):
    """Reads rows {"image": "COCO_train2014_1.jpg", "expression": "the left cup" or several of them, "box": [x1, y1, x2, y2],
    "width": 640, "height": 480}, in pixels of the picture. Ids are "<file stem>/<id>", or the number of the row, with
    "/<number>" after it for each of several expressions.

    target = {"boxes": [[x1, y1, x2, y2]], "box_names": [expression], "width", "height", "question_type": "referring"}. Width
    and height are read from the picture where a row has none. There is no "answer": the box is it.

    Source: the task is that of RefCOCO, arXiv:1608.00272; released files differ in their fields, so these have settings.
    """

    template: str = (
        "Where is this in the picture: {query}\nGive its box in pixels as <answer>[x1, y1, x2, y2]</answer>."
    )
    demo_template: str = "<answer>{box}</answer>"
    """str.format with {box}, [x1, y1, x2, y2] in whole pixels of the original picture."""
    expression_field: str = "expression"
    box_field: str = "box"
    box_form: BoxForm = "xyxy"
    """xywh: corner, width and height, as COCO writes boxes."""
    slack_px: float = 2.0
    """So far may a box reach beyond its picture; it is kept as it is."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json", ".parquet")
    benchmark: ClassVar[str | None] = "refcoco"

    def check(self) -> None:
        super().check()
        if self.box_form not in BOX_FORMS:
            raise ConfigError(f"{self.path}: box_form = {self.box_form!r}; wanted one of {', '.join(BOX_FORMS)}.")

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        found = take_field(row, self.expression_field, where)
        expressions = [found] if isinstance(found, str) else found
        if not isinstance(expressions, list) or not expressions or not all(_is_text(text) for text in expressions):
            raise ConfigError(f"{where}: {self.expression_field} is {shown(found)}, wanted a text or a list of texts.")
        media = self._pictures([row.get("image")], where)
        size = take_size(row, media[0], where)
        box = take_box(take_field(row, self.box_field, where), where, form=self.box_form)
        if why := box_problem(box, size, slack_px=self.slack_px):
            raise ConfigError(f"{where}: the box {box} is {why}, {size[0]} x {size[1]} pixels (form {self.box_form}).")
        name = f"{Path(self.path).stem}/{take_id(row, 'id', where, default=number)}"
        for place, text in enumerate(expressions):
            yield QuestionRow(
                where,
                name if isinstance(found, str) else f"{name}/{place}",
                text.strip(),
                media,
                str([round(edge) for edge in box]),
                {
                    "answer": None,
                    "boxes": [box],
                    "box_names": [text.strip()],
                    "width": size[0],
                    "height": size[1],
                    "question_type": "referring",
                },
                words={"box": str([round(edge) for edge in box]), "width": size[0], "height": size[1]},
            )


def _is_text(value: Any) -> bool:
    return not text_problem(value)
