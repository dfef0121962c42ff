"""Boxes of annotation files, checked and as [x1, y1, x2, y2] in pixels of the original picture."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, Literal

from grpo_mm.datasets.shared.annotated_rows import picture_size
from grpo_mm.datasets.shared.picture_questions import take_whole
from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, finite_number, parse_json, shown

Box = list[float]
BoxForm = Literal["xyxy", "xywh"]
BOX_FORMS: tuple[BoxForm, ...] = ("xyxy", "xywh")
BOX_KEYS = ("bbox_2d", "bbox", "box", "position")
"""Of an object with a box, or with several, whatever the case; beside it a label of `NAME_KEYS`."""
NAME_KEYS = ("label", "category", "name", "ref", "labels", "categories", "names")
_FENCE = re.compile(r"\s*```(?:json)?(.*)```\s*", re.DOTALL)


def take_box(value: Any, where: str, *, form: BoxForm = "xyxy") -> Box:
    """Four finite numbers, as corners; "xywh" is COCO's corner, width and height. It may still be empty or reversed."""
    fine = isinstance(value, (list, tuple)) and len(value) == 4
    if not fine or any(finite_number(edge) is None for edge in value):
        raise ConfigError(f"{where}: {shown(value)} is no box; wanted four finite numbers.")
    x, y, right, bottom = value
    return [x, y, x + right, y + bottom] if form == "xywh" else [x, y, right, bottom]


def take_boxes(value: Any, where: str, *, form: BoxForm = "xyxy") -> list[Box]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: {shown(value)}, wanted a list of boxes.")
    return [take_box(box, where, form=form) for box in value]


def read_boxes(value: Any, where: str, *, form: BoxForm = "xyxy") -> list[tuple[Box, str]]:
    """Boxes with their labels ("" for none), in order, from a box, a list of boxes, {"bbox_2d": box, "label": "cat"}, a list of such,
    {"bbox": [box, …], "label": [name, …]}, or one of these as JSON or as a Python literal, also within a fence ```json.

    None and [] say that there is nothing to be found.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, str):
        fenced = _FENCE.fullmatch(value)
        try:
            value = _literal(fenced[1] if fenced else value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{where}: the answer {shown(value)} is no list of boxes.") from error
    if value is None or value == []:
        return []
    is_one = isinstance(value, Mapping) or (isinstance(value, list) and not isinstance(value[0], (dict, list)))
    rows = [value] if is_one else value
    if not isinstance(rows, list):
        raise ConfigError(f"{where}: the answer is {shown(value)}, wanted a list of boxes.")
    return [found for one in rows for found in _boxes_of(one, where, form)]


def _boxes_of(value: Any, where: str, form: BoxForm) -> list[tuple[Box, str]]:
    if not isinstance(value, Mapping):
        return [(take_box(value, where, form=form), "")]
    fields = {str(name).lower(): one for name, one in value.items()}
    key = next((key for key in BOX_KEYS if key in fields), None)
    if key is None:
        raise ConfigError(f"{where}: {shown(value)} has no box; wanted one of {', '.join(BOX_KEYS)}.")
    held, name = fields[key], next((fields[name] for name in NAME_KEYS if fields.get(name) is not None), None)
    if not isinstance(held, list) or not held or not isinstance(held[0], list):
        return [(take_box(held, where, form=form), _label(name, where))] if held else []
    names = name if isinstance(name, list) else [name] * len(held)
    if len(names) != len(held):
        raise ConfigError(f"{where}: {len(names)} labels for {len(held)} boxes.")
    return [(take_box(box, where, form=form), _label(label, where)) for box, label in zip(held, names)]


def _label(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str | None):
        raise ConfigError(f"{where}: the label of a box is {shown(value)}, wanted a text.")
    return value or ""


def _literal(text: str) -> Any:
    try:
        return parse_json(text)
    except BadJson:
        return ast.literal_eval(text.strip())


def box_problem(box: Box, size: tuple[int, int], *, slack_px: float) -> str:
    """Why a box cannot be used: "reversed or empty", smaller than a pixel, or "beyond the picture" by more than `slack_px`; "" if
    it can. A `size` of (1, 1) says that boxes are shares of width and height."""
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return "reversed or empty"
    width, height = size
    if min(size) > 1 and (x2 - x1 < 1 or y2 - y1 < 1 or max(box) <= 1):
        return "smaller than a pixel (shares of width and height? wanted pixels)"
    inside = min(x1, y1) >= -slack_px and x2 <= width + slack_px and y2 <= height + slack_px
    return "" if inside else "beyond the picture"


def take_size(row: Mapping[str, Any], item: Any, where: str) -> tuple[int, int]:
    """(width, height) of a row, or of its picture where the row has none."""
    if row.get("width") is None and row.get("height") is None:
        return picture_size(item, where)
    size = tuple(take_whole(row.get(name), name, where) for name in ("width", "height"))
    if min(size) < 1:
        raise ConfigError(f"{where}: width and height are {size}, wanted at least 1 pixel.")
    return size[0], size[1]
