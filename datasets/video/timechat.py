"""Charades-STA as TimeChat evaluates it: a list of annotations with running numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from grpo_mm.datasets.shared.checked_fields import read_json, take_span, take_text
from grpo_mm.datasets.shared.files import take_field
from grpo_mm.datasets.video.charades_sta import CharadesSta
from grpo_mm.datasets.video.grounding import GroundingRow
from grpo_mm.errors import ConfigError


@dataclass
class TimeChatCharades(CharadesSta):
    """Reads {"annotations": [{"image_id": "AO8RW.mp4", "caption": "a person …", "timestamp": [0.0, 6.9], "id": 6}, …]},
    and what `CharadesSta` reads. Ids are "charades/<id>"; the id is the number of the sentence in the complete JSON form.

    Source: the released evaluation of TimeChat, arXiv:2312.02051.
    """

    def _rows(self) -> Iterator[GroundingRow]:
        found = read_json(self.path) if self.path.endswith(".json") else None
        if not isinstance(found, dict) or set(found) != {"annotations"}:
            yield from super()._rows()
            return
        if not isinstance(found["annotations"], list) or not all(isinstance(row, dict) for row in found["annotations"]):
            raise ConfigError(f"{self.path}: annotations is no list of objects.")
        for number, row in enumerate(found["annotations"]):
            where = f"{self.path}, annotation {number}"
            yield GroundingRow(
                where,
                f"charades/{take_field(row, 'id', where)}",
                take_text(row, "image_id", where),
                take_text(row, "caption", where),
                (take_span(take_field(row, "timestamp", where), where),),
                None,
            )
