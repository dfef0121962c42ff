"""Conversations as prompts: rows of chat messages with their pictures and videos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.checked_fields import take_field
from grpo_mm.datasets.shared.gathered import RowReader
from grpo_mm.datasets.shared.media_fields import KEYS, check_markers, content_parts, media_of
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.errors import ConfigError
from grpo_mm.media_words import media_key
from grpo_mm.outside import shown
from grpo_mm.types import Prompt

ROLES = ("system", "user", "assistant")
MARKER = re.compile(r"<(image|video)>")


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
        turns = _turns(take_field(row, "messages", where), where)
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
        after = turns[last + 1 :]
        if len(after) > 1 or any(t["role"] == "system" for t in turns[1:]):
            raise ConfigError(
                f"{where}: wanted a system turn only at the start, and at most one answer after the last question."
            )
        told, media = self._media(row, turns, where)
        demo = told[last + 1] if after else None
        return Prompt(
            id=f"{Path(self.path).stem}/{take_id(row, 'id', where, default=number)}",
            text=told[last],
            media=media,
            messages=tuple({"role": turn["role"], "content": told[i]} for i, turn in enumerate(turns[:last])),
            target={name: value for name, value in row.items() if name not in self._of_the_row()},
            demo=demo,
        )

    def _of_the_row(self) -> set[str]:
        return {"id", "messages", *KEYS["image"], *KEYS["video"]} - set(self.for_rewards)

    def _media(
        self, row: Mapping[str, Any], turns: list[Mapping[str, Any]], where: str
    ) -> tuple[list[str], tuple[Any, ...]]:
        """The text of each turn, and the media as their markers come; without markers pictures, then videos."""
        folders = {"image": self.folder, "video": self.folder}
        rest = media_of(row, folders, where, left_alone=("id", "messages", *self.for_rewards))
        told: list[str] = []
        found: dict[str, list[Any]] = {"image": [], "video": []}
        for turn in turns:
            text, parts = content_parts(turn["content"], folders, where)
            if parts and turn["role"] != "user":
                raise ConfigError(
                    f"{where}: a turn of the {turn['role']} shows a picture or video; only users' turns do."
                )
            for kind, item in parts:
                if item is None and not rest[kind]:
                    raise ConfigError(
                        f"{where}: a part of a turn, {kind}, is without a file, and the row has none left."
                    )
                found[kind].append(rest[kind].pop(0) if item is None else item)
            told.append(text)
        found = {kind: [*items, *rest[kind]] for kind, items in found.items()}
        markers = MARKER.findall("".join(text for text, turn in zip(told, turns) if turn["role"] == "user"))
        check_markers(markers, found, where)
        if markers:
            return told, tuple(found[kind].pop(0) for kind in markers)
        return told, (*found["image"], *found["video"])


def _turns(turns: Any, where: str) -> list[Mapping[str, Any]]:
    fine = isinstance(turns, list) and all(isinstance(t, dict) and t.get("role") in ROLES for t in turns)
    if not fine or not any(t["role"] == "user" for t in turns) or not all(_is_content(t.get("content")) for t in turns):
        raise ConfigError(
            f"{where}: messages are {shown(turns)}; wanted turns with a role of {ROLES} and a text, one of a user."
        )
    for turn in turns:
        if dropped := [name for name in ("tool_calls", "reasoning_content", "thinking") if turn.get(name)]:
            raise ConfigError(
                f"{where}: a turn holds {shown(dropped[0])}, which the model would not be shown. Write it into the turn's content, "
                "as its chat template has it, or take it out."
            )
        if key := media_key({name: value for name, value in turn.items() if name not in ("role", "content")}):
            raise ConfigError(
                f"{where}: a turn holds {shown(key)}, which would not be shown. Put it under 'images' or 'videos' of the row."
            )
    return turns


def _is_content(value: Any) -> bool:
    return isinstance(value, (str, list))
