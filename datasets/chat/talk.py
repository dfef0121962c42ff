"""A conversation as a question with what came before it, whatever tool kit wrote it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_mm.datasets.shared.markers import place_media
from grpo_mm.datasets.shared.media_fields import Kind, content_parts
from grpo_mm.errors import ConfigError
from grpo_mm.media_words import media_key
from grpo_mm.outside import shown

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Talk:
    """Example: Talk("Which colour?", ({"role": "user", "content": "<image> What is it?"}, …), "Red.", (picture,))."""

    question: str
    """The last user's turn."""
    earlier: tuple[Mapping[str, str], ...]
    answer: str | None
    """What an assistant said after it."""
    media: tuple[Any, ...]
    """As their markers come in the users' turns; without any, pictures, then videos."""


def read_talk(
    turns: Any, rest: Mapping[Kind, list[Any]], folders: Mapping[Kind, str], where: str, *, name: str = "messages"
) -> Talk:
    """The question of turns {"role", "content"}, whose contents may be lists of parts.

    Args:
        rest: media that the row has beside the turns; parts without a file of their own take them in order, or by "index".
        folders: what names of media in parts are relative to.
        name: of the column, for messages.

    Raises:
        ConfigError: no such turns, a system turn that is not the first, two answers after the last question, media that would
            not be shown, or other markers than media.
    """
    turns = checked_turns(turns, where, name)
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    after = turns[last + 1 :]
    if len(after) > 1 or any(t["role"] == "system" for t in turns[1:]):
        raise ConfigError(
            f"{where}: wanted a system turn only at the start, and at most one answer after the last question."
        )
    told, media = _told(turns, rest, folders, where)
    return Talk(
        told[last],
        tuple({"role": turn["role"], "content": told[i]} for i, turn in enumerate(turns[:last])),
        told[last + 1] if after else None,
        media,
    )


def checked_turns(turns: Any, where: str, name: str = "messages") -> list[Mapping[str, Any]]:
    fine = isinstance(turns, list) and all(isinstance(t, Mapping) and t.get("role") in ROLES for t in turns)
    if not fine or not any(t["role"] == "user" for t in turns) or not all(_is_content(t.get("content")) for t in turns):
        raise ConfigError(
            f"{where}: {name} are {shown(turns)}; wanted turns with a role of {ROLES} and a text, one of a user."
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


def _told(
    turns: Sequence[Mapping[str, Any]], rest: Mapping[Kind, list[Any]], folders: Mapping[Kind, str], where: str
) -> tuple[list[str], tuple[Any, ...]]:
    """The text of each turn, and the media in their order."""
    rest = {kind: list(items) for kind, items in rest.items()}
    told: list[str] = []
    found: dict[Kind, list[Any]] = {"image": [], "video": []}
    taken: dict[Kind, set[int]] = {"image": set(), "video": set()}
    for turn in turns:
        text, parts = content_parts(turn["content"], folders, where)
        if parts and turn["role"] != "user":
            raise ConfigError(f"{where}: a turn of the {turn['role']} shows a picture or video; only users' turns do.")
        for kind, item in parts:
            if item is None or isinstance(item, int):
                place = next((i for i in range(len(rest[kind])) if i not in taken[kind]), -1) if item is None else item
                if not 0 <= place < len(rest[kind]):
                    raise ConfigError(
                        f"{where}: a part of a turn, {kind}, is without a file, and the row has none left."
                    )
                taken[kind].add(place)
                item = rest[kind][place]
            found[kind].append(item)
        told.append(text)
    for kind, items in rest.items():
        found[kind] += [item for i, item in enumerate(items) if i not in taken[kind]]
    asked = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    texts, media = place_media([told[i] for i in asked], found, where)
    for i, text in zip(asked, texts, strict=True):
        told[i] = text
    return told, media


def _is_content(value: Any) -> bool:
    return isinstance(value, (str, list))
