"""Questions with the boxes that an answer should look at: the rows of GRIT, VGR and VisCoT."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from grpo_mm.datasets.shared.annotated_boxes import box_problem, take_boxes, take_size
from grpo_mm.datasets.shared.checked_fields import take_text
from grpo_mm.datasets.shared.gathered import NAMED
from grpo_mm.datasets.shared.picture_questions import PictureQuestions, QuestionRow
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number

QUESTION_TYPES = {"tallyqa": "count", "vsr": "relation"}
"""Data set that a row comes from → what it asks."""
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_LETTER = re.compile(r"\([A-Za-z]\)|[A-Za-z]\.?")
log = logging.getLogger(__name__)


@dataclass
class GroundedCot(PictureQuestions):
    """Reads rows {"question", "answer", "image", "width": 640, "height": 480, "bboxs": [[x1, y1, x2, y2], …], "dataset":
    "tallyqa", "split"}, boxes in pixels of the picture. Ids are "<file stem>/<id>", or the number of the row.

    target = {"answer", "answer_type", "question_type": "count" for rows of tallyqa, "relation" for those of vsr, "boxes",
    "width", "height", "dataset"}; no "boxes" where a row has none. The answer type is the row's "answer_type", else numerical
    for a number, multiple choice for a letter or yes and no, else `other_type`. "image" may be a list; boxes are then those
    of the first. Width and height are read from the picture where a row has none.

    Source: GRIT, arXiv:2505.15879. Grade A for the fields.
    """

    template: str = (
        "{query}\nFirst think within <think>…</think>, and write the box of each region that you look at as "
        "<bbox>[x1, y1, x2, y2]</bbox> in pixels. Then give the answer within <answer>…</answer>."
    )
    """The question as the model gets it: {query} is that of the row."""
    answer_type: str | None = None
    """Of all rows, whatever they say; None: row by row."""
    other_type: str = "free text"
    """Answer type of what is neither a number, a letter nor yes or no."""
    split: str | None = None
    """Only rows of this split; None for all."""
    broken_boxes: Literal["error", "drop"] = "error"
    """What becomes of a row with a box that is reversed, empty or beyond its picture. drop: left out and counted."""
    slack_px: float = 2.0
    """So far may a box reach beyond its picture; it is kept as it is."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json", ".parquet")

    def check(self) -> None:
        super().check()
        if self.broken_boxes not in ("error", "drop") or self.slack_px < 0:
            raise ConfigError(
                f"{self.path}: broken_boxes = {self.broken_boxes!r}, slack_px = {self.slack_px}; wanted error or drop, and "
                "at least 0."
            )

    def _every_question(self) -> Iterator[QuestionRow]:
        dropped: list[str] = []
        try:
            for question in super()._every_question():
                problem = next(filter(None, (self._problem(box, question) for box in question.target["boxes"])), "")
                if problem and self.broken_boxes == "error":
                    raise ConfigError(f"{question.where}: {problem}. Set broken_boxes: drop to leave such rows out.")
                if problem:
                    dropped.append(question.id)
                    continue
                yield question
        finally:  # also where a limit ends it
            if dropped:
                names = ", ".join(dropped[:NAMED])
                log.warning("%s: %d rows left out for a broken box (%s)", self.path, len(dropped), names)

    def _problem(self, box: list[float], question: QuestionRow) -> str:
        size = question.target["width"], question.target["height"]
        why = box_problem(box, size, slack_px=self.slack_px)
        return f"the box {box} is {why}, {size[0]} x {size[1]} pixels" if why else ""

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        if self.split is not None and row.get("split") != self.split:
            return
        seen = row.get("image")
        media = self._pictures(seen if isinstance(seen, list) and seen else [seen], where)
        width, height = take_size(row, media[0], where)
        given = row.get("answer")
        answer = str(given) if finite_number(given) is not None else take_text(row, "answer", where)
        for name in ("dataset", "question_type", "answer_type"):
            if row.get(name):
                take_text(row, name, where)
        dataset = row.get("dataset")
        kind = row.get("question_type") or QUESTION_TYPES.get(str(dataset).lower())
        yield QuestionRow(
            where,
            f"{Path(self.path).stem}/{take_id(row, 'id', where, default=number)}",
            take_text(row, "question", where),
            media,
            answer,
            {
                "answer_type": self.answer_type or row.get("answer_type") or self._type(answer),
                "question_type": kind,
                "boxes": take_boxes(row.get("bboxs") or [], where),
                "width": width,
                "height": height,
                "dataset": dataset,
            },
            words={"width": width, "height": height},
        )

    def _type(self, answer: str) -> str:
        if _NUMBER.fullmatch(answer):
            return "numerical"
        return "multiple choice" if _LETTER.fullmatch(answer) or answer.lower() in ("yes", "no") else self.other_type
