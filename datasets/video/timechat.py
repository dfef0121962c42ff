"""Charades-STA as TimeChat evaluates it: a list of annotations with running numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grpo_mm.datasets.shared.checked_fields import take_field, take_span, take_text
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.datasets.shared.row_files import read_json
from grpo_mm.datasets.video.charades_sta import CharadesSta
from grpo_mm.datasets.video.grounding import GroundingRow
from grpo_mm.errors import ConfigError


@dataclass
class TimeChatCharades(CharadesSta):
    """Reads {"annotations": [{"image_id": "AO8RW.mp4", "caption": "a person …", "timestamp": [0.0, 6.9], "id": 6}, …]},
    and what `CharadesSta` reads. Ids are "charades/<id>"; the id is the number of the sentence in the complete JSON form.

    Source: the released evaluation of TimeChat, arXiv:2312.02051.
    """

    def _entries(self) -> Iterator[tuple[str, Any]]:
        found = read_json(self.path) if self.path.endswith(".json") else None
        if not isinstance(found, dict) or set(found) != {"annotations"}:
            return super()._entries()
        rows = found["annotations"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError(f"{self.path}: annotations is no list of objects.")
        return ((f"{self.path}, annotation {number}", row) for number, row in enumerate(rows))

    def _row(self, row: Any, where: str, number: int) -> Iterator[GroundingRow]:
        if not isinstance(row, dict):
            yield from super()._row(row, where, number)
            return
        take_field(row, "id", where)
        yield GroundingRow(
            where,
            f"charades/{take_id(row, 'id', where)}",
            take_text(row, "image_id", where),
            take_text(row, "caption", where),
            (take_span(take_field(row, "timestamp", where), where),),
            None,
        )
