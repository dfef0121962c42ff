"""Time-R1's data: the benchmark TVGBench and the rows it is trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

from grpo_mm.datasets.shared.checked_fields import take_duration, take_field, take_seconds, take_span, take_text
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.datasets.video.grounding import GroundingPrompts, GroundingRow
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

ANSWER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*")


@dataclass
class TvgBench(GroundingPrompts):
    """Reads tvgbench.json, 800 rows {"path", "question", "answer": "13.4-28.1", "duration", "qsemtype", …}. Ids are
    "tvgbench/<row number>"; spans are in seconds of the part between `start` and `end`, if those are given.

    target adds "dataset" (from the bins where dataset_name is missing, 168 rows) and "question_type". Eleven rows mark
    a point and one ends 4.9 s after its video; a benchmark keeps them.

    Source: arXiv:2503.13377.
    """

    def _row(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[GroundingRow]:
        answer = take_text(row, "answer", where)
        match = ANSWER.fullmatch(answer)
        if match is None:
            raise ConfigError(f"{where}: answer is {shown(answer)}, wanted 'start-end' in seconds.")
        bins = row.get("bins") or {}
        start, end = _crop(row, "start", "end", where)
        yield GroundingRow(
            where,
            f"tvgbench/{number}",
            PurePosixPath(take_text(row, "path", where)).name,
            take_text(row, "question", where),
            (take_span([float(match[1]), float(match[2])], where),),
            take_duration(take_field(row, "duration", where), where),
            start,
            end,
            target={
                "dataset": row.get("dataset_name") or bins.get("dataset"),
                "question_type": row.get("qsemtype"),
            },
        )


@dataclass
class TimeR1Rows(GroundingPrompts):
    """Reads train_2k5.json and files like it, rows {"video", "sentence", "timestamp": [s, e], "duration", "qid", …}. Ids
    are "timer1/<qid>".

    target adds "difficulty", the base model's IoU (0..1; the file has it times 100), and "base_prediction", its span.
    One published span ends at 14,220 s of 158: use `unusable: drop` for training.

    Source: arXiv:2503.13377.
    """

    crop: bool = True
    """Read only the part between video_start and video_end, as the released code does. Many of these rows have file names
    that end in the same times: if your files were cut already, set it to false (uncertain)."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl")

    def _row(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[GroundingRow]:
        start, end = _crop(row, "video_start", "video_end", where) if self.crop else (None, None)
        target: dict[str, Any] = {}
        if row.get("difficulty") is not None:
            target["difficulty"] = take_seconds(row["difficulty"], "difficulty", where) / 100
        if row.get("pred") is not None:
            target["base_prediction"] = list(take_span(row["pred"], where))
        yield GroundingRow(
            where,
            f"timer1/{take_id(row, 'qid', where)}",
            PurePosixPath(take_text(row, "video", where)).name,
            take_text(row, "sentence", where),
            (take_span(take_field(row, "timestamp", where), where),),
            take_duration(take_field(row, "duration", where), where),
            start,
            end,
            target=target,
        )


def _crop(row: Mapping[str, Any], first: str, last: str, where: str) -> tuple[float | None, float | None]:
    start, end = (None if row.get(name) is None else take_seconds(row[name], name, where) for name in (first, last))
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise ConfigError(f"{where}: {first} = {start}, {last} = {end} leaves nothing of the video.")
    return start, end
