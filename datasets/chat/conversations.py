"""Questions with one or several pictures as conversations, the form of VLM-R1 and of LLaVA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.annotated_boxes import box_problem, read_boxes, take_size
from grpo_mm.datasets.shared.checked_fields import fill, take_field, take_text
from grpo_mm.datasets.shared.gathered import RowReader
from grpo_mm.datasets.shared.media_fields import check_markers, media_of
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt

ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
MARKER = re.compile(r"<(image|video)>")
SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@dataclass
class Conversations(RowReader):
    """Reads lines {"id": 1, "image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "…"}, {"from":
    "gpt", "value": "…"}]}; `image` may be one name, several, or missing, and so may `video`. Ids are "<file stem>/<id>".

    Markers <image> and <video> in the question say where each picture and video stands; without any, pictures come first,
    then videos. Another key that looks like media is refused by its name. The second turn is the answer: target =
    {"answer": …}, that of its last answer element if it has one.

    With `boxes` that answer is [x1, y1, x2, y2], or a list of such or of {"bbox_2d": […], "label": "cat"}, in pixels of the first
    picture: target = {"boxes", "box_names" (where all have a label), "width", "height"}. An empty list, or None, says that
    there is nothing to be found.

    Source: VLM-R1, arXiv:2504.07615; objects with "Position": Visual-RFT, arXiv:2503.01785.
    """

    path: str
    images: str = "images"
    """The folder with the pictures."""
    videos: str | None = None
    """The folder with the videos; None: that of the pictures."""
    template: str = "{query}\nPut the final answer into <answer>…</answer>."
    """str.format with {query}."""
    demo_template: str = "<answer>{answer}</answer>"
    answer_type: str | None = None
    """How rewards should compare answers, the same for the whole file; the format does not say it."""
    boxes: bool = False
    """The answers are boxes."""
    slack_px: float = 2.0
    """So far may a box reach beyond its picture; it is kept as it is."""
    for_rewards: list[str] = field(default_factory=list)
    """Keys whose pictures, videos or sounds nobody is shown: they are left out."""
    check_files: bool = False
    """Leave out, count and name rows with a picture or video that is not there."""
    limit: int | None = None

    def _prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        folders = {"image": self.images, "video": self.images if self.videos is None else self.videos}
        found = media_of(row, folders, where, left_alone=("id", "conversations", *self.for_rewards))
        query, answer = _turns(take_field(row, "conversations", where), where)
        markers = MARKER.findall(query)
        check_markers(markers, found, where)
        media = tuple(found[kind].pop(0) for kind in markers) or (*found["image"], *found["video"])
        answer = (ANSWER.findall(answer) or [answer])[-1].strip()
        target: dict[str, Any] = {"answer": answer} | ({"answer_type": self.answer_type} if self.answer_type else {})
        return Prompt(
            id=f"{Path(self.path).stem}/{take_id(row, 'id', where, default=number)}",
            text=fill(self.template, {"query": query}, "template", where),
            media=media,
            target=self._box_target(row, media, answer, where) if self.boxes else target,
            demo=fill(self.demo_template, {"query": query, "answer": answer}, "demo_template", where),
        )

    def _box_target(self, row: Mapping[str, Any], media: tuple[Any, ...], answer: str, where: str) -> dict[str, Any]:
        if not media or getattr(media[0], "is_video", False):
            raise ConfigError(f"{where}: boxes without a picture.")
        width, height = take_size(row, media[0], where)
        found = read_boxes(answer, where)
        for box, _ in found:
            if why := box_problem(box, (width, height), slack_px=self.slack_px):
                raise ConfigError(f"{where}: the box {box} is {why}, {width} x {height} pixels.")
        names = [name for _, name in found if name]
        target = {"boxes": [box for box, _ in found], "width": width, "height": height}
        return target | ({"box_names": names} if names and len(names) == len(found) else {})


def _turns(turns: Any, where: str) -> tuple[str, str]:
    turns = [turn if "from" in turn else _named(turn) for turn in turns] if _are_objects(turns) else turns
    if not _are_objects(turns) or [SPEAKERS.get(str(turn.get("from"))) for turn in turns] != ["human", "gpt"]:
        raise ConfigError(
            f"{where}: wanted one turn from 'human' and one from 'gpt', found {shown(turns)}. For a system turn or several "
            "questions use {kind: messages}, which reads them as {'role': …, 'content': …}."
        )
    return take_text(turns[0], "value", where), take_text(turns[1], "value", where)


def _are_objects(turns: Any) -> bool:
    return isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)


def _named(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn {"role", "content"} as {"from", "value"}."""
    return {{"role": "from", "content": "value"}.get(name, name): value for name, value in turn.items()}
