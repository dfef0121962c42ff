"""VSI-Bench: sizes, distances, directions and routes in rooms that a video walks through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from grpo_mm.datasets.media.media_files import VideoFile
from grpo_mm.datasets.shared.checked_fields import take_field, take_seconds, take_text
from grpo_mm.datasets.shared.picture_questions import PictureQuestions, QuestionRow, take_choices, take_letter
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.datasets.video.grounding import EXTENSIONS, assumed_video, find_video
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

CHOICES = (
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "object_rel_distance",
    "route_planning",
    "obj_appearance_order",
)
NUMBERS = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")


@dataclass
class VsiBench(PictureQuestions):
    """Reads rows {"id", "dataset": "arkitscenes", "scene_name": "41069025", "question_type": "object_rel_distance",
    "question", "options": ["A. table", "B. bed"] or null, "ground_truth": "B" or "3.4"}. Ids are "vsi_bench/<id>"; the
    video is <folder>/<dataset>/<scene_name>.mp4.

    target = {"answer": "B", "answer_type": "multiple choice", "choices", "question_type", "scene"}, or {"answer": "3.4",
    "answer_type": "numerical", …}. {how} in the template says what form of answer is wanted.

    Source: arXiv:2412.14171. Grade A for fields and question types; the words of the template are ours.
    """

    template: str = "These are frames of a video.\n{query}{choices}\n{how} Put the answer into <answer>…</answer>."
    """The question as the model gets it: {query} is that of the row."""
    extensions: list[str] = field(default_factory=lambda: list(EXTENSIONS))
    """Tried in this order; the first is assumed where no file is found."""
    number_type: Literal["numerical", "regression"] = "numerical"
    """The answer type of questions for a number, which rewards go by: the typed answer takes equality for "numerical",
    closeness for "regression"."""

    benchmark: ClassVar[str | None] = "vsi_bench"

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        kind = take_text(row, "question_type", where)
        if kind not in CHOICES + NUMBERS:
            raise ConfigError(f"{where}: question_type {shown(kind)}, wanted one of {', '.join(CHOICES + NUMBERS)}.")
        choices = take_choices(row.get("options"), where) if kind in CHOICES else ()
        right = take_field(row, "ground_truth", where)
        answer = take_letter(right, choices, where)[1] if kind in CHOICES else _number(right, where)
        lines = "".join(f"\n({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices))
        for field_name in ("scene_name", "id"):
            take_field(row, field_name, where)
        scene = take_id(row, "scene_name", where)
        name = str(Path(take_text(row, "dataset", where)) / scene)
        path = find_video(self.folder, name, self.extensions) or assumed_video(self.folder, name, self.extensions)
        yield QuestionRow(
            where,
            f"vsi_bench/{take_id(row, 'id', where)}",
            take_text(row, "question", where),
            (VideoFile(path),),
            answer,
            {
                "answer_type": "multiple choice" if choices else self.number_type,
                "question_type": kind,
                "scene": scene,
            },
            choices=choices,
            words={
                "choices": lines,
                "how": "Answer with the letter of the right option only." if choices else "Answer with a number only.",
            },
        )


def _number(value: Any, where: str) -> str:
    """The number as it is written in the file."""
    try:
        take_seconds(float(value), "ground_truth", where)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: ground_truth is {shown(value)}, wanted a number.") from error
    return str(value).strip()
