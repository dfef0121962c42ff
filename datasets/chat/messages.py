"""Conversations as prompts: rows of chat messages with their pictures and videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_mm.datasets.chat.talk import checked_turns, read_talk
from grpo_mm.datasets.shared.checked_fields import take_field
from grpo_mm.datasets.shared.gathered import RowReader
from grpo_mm.datasets.shared.media_fields import KEYS, Kind, media_of
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.types import Prompt


@dataclass
class Messages(RowReader):
    """Reads lines {"messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "<image> what is it?"}],
    "images": ["a.png"], "videos": [], "answer": "…"}. Ids are "<file stem>/<id>".

    The policy writes the turn after the last user's; what an assistant said after it is the prompt's `demo`. A marker <image>
    or <video> for each picture and video says where it stands; without any they come first; only users' turns hold markers. A
    content may also be a list of parts, as served models take it. "image", "video" and a single name do as well; another key
    that looks like media is refused by its name. All other fields of a row are the prompt's target: answer, spans, duration, …
    """

    path: str
    folder: str = "."
    """The pictures and videos lie here."""
    for_rewards: list[str] = field(default_factory=list)
    """Keys whose pictures, videos or sounds the model is not shown: they go into the target."""
    limit: int | None = None

    def _prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        checked_turns(take_field(row, "messages", where), where)
        talk = read_talk(take_field(row, "messages", where), self._rest(row, where), self._folders, where)
        return Prompt(
            id=f"{Path(self.path).stem}/{take_id(row, 'id', where, default=number)}",
            text=talk.question,
            media=talk.media,
            messages=talk.earlier,
            target={name: value for name, value in row.items() if name not in self._of_the_row()},
            demo=talk.answer,
        )

    @property
    def _folders(self) -> dict[Kind, str]:
        return {"image": self.folder, "video": self.folder}

    def _rest(self, row: Mapping[str, Any], where: str) -> dict[Kind, list[Any]]:
        return media_of(row, self._folders, where, left_alone=("id", "messages", *self.for_rewards))

    def _of_the_row(self) -> set[str]:
        return {"id", "messages", *KEYS["image"], *KEYS["video"]} - set(self.for_rewards)
