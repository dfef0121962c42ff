"""Questions about a whole video whose answer is one of a few names, such as its quality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from grpo_mm.datasets.media.media_files import VideoFile
from grpo_mm.datasets.shared.checked_fields import take_text
from grpo_mm.datasets.shared.picture_questions import PictureQuestions, QuestionRow


@dataclass
class VideoQuality(PictureQuestions):
    """Reads rows {"video": "0506.mp4", "instruction": "How about … ['low quality', 'high quality'].", "answer": "low quality"}.
    Ids are "<file stem>/<row number>", as a video may be asked about twice.

    target = {"answer": "low quality", "answer_type": "multiple choice"}: {kind: typed_answer} wants the same words, whatever
    their case.

    Source: the closed-set classification of VideoChat-R1, arXiv:2504.06958, code (Quality_Access_*.json); grade A.
    """

    template: str = "{query}\nPut the answer, and nothing else, into <answer>…</answer>."
    """The question as the model gets it: {query} is that of the row."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl")

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        yield QuestionRow(
            where,
            f"{Path(self.path).stem}/{number}",
            take_text(row, "instruction", where),
            (VideoFile(str(Path(self.folder) / take_text(row, "video", where))),),
            take_text(row, "answer", where),
            {"answer_type": "multiple choice"},
        )
