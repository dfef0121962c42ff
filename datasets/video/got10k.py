"""Tracking: where is the object of the first picture in the later ones?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, get_args

from grpo_mm.datasets.media.picture_sequence import PictureSequence
from grpo_mm.datasets.shared.annotated_boxes import box_problem, take_boxes
from grpo_mm.datasets.shared.checked_fields import take_field, take_text
from grpo_mm.datasets.shared.picture_questions import PictureQuestions, QuestionRow
from grpo_mm.errors import ConfigError

Twice = Literal["first", "last"]
BEYOND = 0.01
"""Of the picture: so much a box may exceed it."""


@dataclass
class Got10k(PictureQuestions):
    """Reads VideoChat-R1's rows {"path": "…/val/GOT-10k_Val_000010", "object": "sloth", "gt": 8 boxes [x1, y1, x2, y2] in shares
    of width and height}; the pictures lie in <folder>/GOT-10k_Val_000010/. Ids are "got10k/GOT-10k_Val_000010".

    target = {"track": the boxes, "object": "sloth"}. As published, the question tells the first box, which the answer repeats.

    Source: arXiv:2504.06958, code; grade A; GOT-10k: arXiv:1810.11981. Uncertain: which pictures the boxes belong to. In the
    published rows the first two boxes nearly agree and the others lie evenly apart, so the release's eight are the first picture
    and seven evenly spaced ones, where the paper says evenly sampled; the release shows seven, and the last twice. See `twice`.
    """

    template: str = (
        "The video has {count} frames. Follow this object through them: {object}. In the first frame its box is {start}.\n"
        "Give its box in each of the {count} frames, [x1, y1, x2, y2] in shares of width and height between 0 and 1, in order, as "
        "<answer>[[x1, y1, x2, y2], …]</answer>."
    )
    """str.format with {object}, {start}, the first box, and {count}, the number of boxes."""
    twice: Twice | None = "first"
    """first: as many pictures as boxes but one, evenly from the first to the last, the first of them twice, which is where the
    boxes are. last: the last of them twice, as in the release. null: as many pictures as boxes, evenly."""
    fps: float = 2.0
    """Frames a second that the model is told."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl")

    def check(self) -> None:
        super().check()
        if self.twice not in (None, *get_args(Twice)) or not self.fps > 0:
            raise ConfigError(
                f"{self.path}: twice = {self.twice!r}, fps = {self.fps}; wanted first, last or null; above 0."
            )

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        boxes, name = _track(take_field(row, "gt", where), where), take_text(row, "object", where)
        sequence = PurePosixPath(take_text(row, "path", where)).name
        yield QuestionRow(
            where,
            f"got10k/{sequence}",
            name,
            (PictureSequence(str(Path(self.folder) / sequence), places(len(boxes), self.twice), self.fps),),
            str(boxes),
            {"answer": None, "track": boxes, "object": name},  # no answer to be compared as a text
            words={"object": name, "start": boxes[0], "count": len(boxes)},
        )


def places(count: int, twice: Twice | None) -> tuple[float, ...]:
    """Where `count` frames lie in a sequence, from 0 to 1."""
    steps = count - 1 - (twice is not None)
    even = tuple(k / steps for k in range(steps + 1))
    return (*((0.0,) if twice == "first" else ()), *even, *((1.0,) if twice == "last" else ()))


def _track(value: Any, where: str) -> list[list[float]]:
    boxes = take_boxes(value, where)
    if len(boxes) < 3:
        raise ConfigError(f"{where}: gt has {len(boxes)} boxes, wanted at least 3.")
    for box in boxes:
        if problem := box_problem(box, (1, 1), slack_px=BEYOND):
            raise ConfigError(f"{where}: the box {box} is {problem}; wanted shares of width and height, from 0 to 1.")
    return boxes
