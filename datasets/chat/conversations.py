"""Questions with one or several pictures as conversations, the form of VLM-R1 and of LLaVA."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.media.media_files import ImageFile
from grpo_mm.datasets.shared.annotated_boxes import Box, box_problem, take_box, take_size
from grpo_mm.datasets.shared.checked_fields import fill, take_text
from grpo_mm.datasets.shared.files import take_field
from grpo_mm.datasets.shared.gathered import RowReader
from grpo_mm.errors import ConfigError
from grpo_mm.types import Prompt

ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
MARKER = "<image>"
BOX_KEYS = ("bbox_2d", "bbox", "box", "position")
"""Of an object with a box, whatever the case; beside it "label"."""
_FENCE = re.compile(r"\s*```(?:json)?(.*)```\s*", re.DOTALL)


@dataclass
class Conversations(RowReader):
    """Reads lines {"id": 1, "image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "…"}, {"from":
    "gpt", "value": "…"}]}; `image` may be one name, several, or missing. Ids are "<file stem>/<id>".

    Markers <image> in the question say where each picture stands; without any, pictures come first. The second turn is
    the answer: target = {"answer": …}, without its answer element if it has one.

    With `boxes` that answer is [x1, y1, x2, y2], or a list of such or of {"bbox_2d": […], "label": "cat"}, in pixels of the first
    picture: target = {"boxes", "box_names" (where all have a label), "width", "height"}. An empty list, or None, says that
    there is nothing to be found.

    Source: VLM-R1, arXiv:2504.07615; objects with "Position": Visual-RFT, arXiv:2503.01785.
    """

    path: str
    images: str = "images"
    """The folder with the pictures."""
    template: str = "{query}\nPut the final answer into <answer>…</answer>."
    """str.format with {query}."""
    demo_template: str = "<answer>{answer}</answer>"
    answer_type: str | None = None
    """How rewards should compare answers, the same for the whole file; the format does not say it."""
    boxes: bool = False
    """The answers are boxes."""
    slack_px: float = 2.0
    """So far may a box reach beyond its picture; it is kept as it is."""
    check_files: bool = False
    """Leave out, count and name rows with a picture that is not there."""
    limit: int | None = None

    def _prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        names = row.get("image") or []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"{where}: image is {names!r:.200}, wanted a name or a list of names.")
        query, answer = _turns(take_field(row, "conversations", where), where)
        markers = query.count(MARKER)
        if markers and markers != len(names):
            raise ConfigError(f"{where}: {markers} markers {MARKER} for {len(names)} pictures.")
        match = ANSWER.search(answer)
        answer = match[1].strip() if match else answer
        media = tuple(ImageFile(str(Path(self.images) / name)) for name in names)
        target: dict[str, Any] = {"answer": answer} | ({"answer_type": self.answer_type} if self.answer_type else {})
        return Prompt(
            id=f"{Path(self.path).stem}/{row.get('id', number)}",
            text=fill(self.template, {"query": query}, "template", where),
            media=media,
            target=self._box_target(row, media, answer, where) if self.boxes else target,
            demo=fill(self.demo_template, {"query": query, "answer": answer}, "demo_template", where),
        )

    def _box_target(
        self, row: Mapping[str, Any], media: tuple[ImageFile, ...], answer: str, where: str
    ) -> dict[str, Any]:
        if not media:
            raise ConfigError(f"{where}: boxes without a picture.")
        width, height = take_size(row, media[0], where)
        found = _boxes(answer, where)
        for box, _ in found:
            if why := box_problem(box, (width, height), slack_px=self.slack_px):
                raise ConfigError(f"{where}: the box {box} is {why}, {width} x {height} pixels.")
        names = [name for _, name in found if name]
        target = {"boxes": [box for box, _ in found], "width": width, "height": height}
        return target | ({"box_names": names} if names and len(names) == len(found) else {})


def _boxes(answer: str, where: str) -> list[tuple[Box, str]]:
    """Boxes and labels of an answer, in its order: JSON, or a Python literal as Visual-RFT writes them."""
    fenced = _FENCE.fullmatch(answer)
    try:
        value = _literal(fenced[1] if fenced else answer)
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"{where}: the answer {answer!r:.200} is no list of boxes.") from error
    if value is None or value == []:
        return []
    is_one = isinstance(value, dict) or (isinstance(value, list) and not isinstance(value[0], (dict, list)))
    rows = [value] if is_one else value
    if not isinstance(rows, list):
        raise ConfigError(f"{where}: the answer is {value!r:.200}, wanted a list of boxes.")
    return [_box(one, where) for one in rows]


def _box(value: Any, where: str) -> tuple[Box, str]:
    if not isinstance(value, dict):
        return take_box(value, where), ""
    fields = {str(name).lower(): field for name, field in value.items()}
    key = next((key for key in BOX_KEYS if key in fields), None)
    if key is None:
        raise ConfigError(f"{where}: {value!r:.200} has no box; wanted one of {', '.join(BOX_KEYS)}.")
    return take_box(fields[key], where), str(fields.get("label") or "")


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return ast.literal_eval(text.strip())


def _turns(turns: Any, where: str) -> tuple[str, str]:
    fine = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not fine or [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise ConfigError(f"{where}: wanted one turn from 'human' and one from 'gpt', found {turns!r:.200}.")
    return take_text(turns[0], "value", where), take_text(turns[1], "value", where)
