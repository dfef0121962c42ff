"""Conversations as prompts: rows of chat messages with their pictures and videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.shared.files import take_field
from grpo_mm.datasets.shared.gathered import RowReader
from grpo_mm.errors import ConfigError
from grpo_mm.types import Prompt

ROLES = ("system", "user", "assistant")
OF_THE_ROW = ("id", "messages", "images", "videos")


@dataclass
class Messages(RowReader):
    """Reads lines {"messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "<image> what is it?"}],
    "images": ["a.png"], "videos": [], "answer": "…"}. Ids are "<file stem>/<id>".

    The policy writes the turn after the last user's; what an assistant said after it is the prompt's `demo`. A marker <image>
    or <video> for each picture and video says where it stands; without any they come first. All other fields of a row are the
    prompt's target: answer, answer_type, spans, duration, …
    """

    path: str
    folder: str = "."
    """The pictures and videos lie here."""
    limit: int | None = None

    def _prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        turns = take_field(row, "messages", where)
        told = isinstance(turns, list) and all(
            isinstance(t, dict) and t.get("role") in ROLES and isinstance(t.get("content"), str) for t in turns
        )
        if not told or not any(t["role"] == "user" for t in turns):
            raise ConfigError(
                f"{where}: messages are {turns!r:.200}; wanted turns with a role of {ROLES} and a text, one of a user."
            )
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
        after = turns[last + 1 :]
        if len(after) > 1 or any(t["role"] == "system" for t in turns[1:]):
            raise ConfigError(
                f"{where}: wanted a system turn only at the start, and at most one answer after the last question."
            )
        images, videos = (_names(row, name, where) for name in ("images", "videos"))
        markers = "".join(turn["content"] for turn in turns[: last + 1])
        for name, files in (("image", images), ("video", videos)):
            if (count := markers.count(f"<{name}>")) not in (0, len(files)):
                raise ConfigError(f"{where}: {count} markers <{name}> for {len(files)} files.")
        return Prompt(
            id=f"{Path(self.path).stem}/{row.get('id', number)}",
            text=turns[last]["content"],
            media=_in_order(
                markers, [str(Path(self.folder) / n) for n in images], [str(Path(self.folder) / n) for n in videos]
            ),
            messages=tuple({"role": turn["role"], "content": turn["content"]} for turn in turns[:last]),
            target={name: value for name, value in row.items() if name not in OF_THE_ROW},
            demo=after[0]["content"] if after else None,
        )


def _names(row: Mapping[str, Any], name: str, where: str) -> list[str]:
    names = row.get(name) or []
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(f"{where}: {name} is {names!r:.200}, wanted a list of file names.")
    return names


def _in_order(text: str, images: list[str], videos: list[str]) -> tuple[ImageFile | VideoFile, ...]:
    """As their markers come; without markers pictures, then videos."""
    rest: dict[str, list[ImageFile | VideoFile]] = {
        "<image>": [ImageFile(p) for p in images],
        "<video>": [VideoFile(p) for p in videos],
    }
    places = sorted((i, name) for name in rest for i in range(len(text)) if text.startswith(name, i))
    found = [rest[name].pop(0) for _, name in places]
    return (*found, *rest["<image>"], *rest["<video>"])
