"""Boxes of annotation files, checked and as [x1, y1, x2, y2] in pixels of the original picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from grpo_mm.datasets.shared.annotated_rows import picture_size
from grpo_mm.datasets.shared.picture_questions import take_whole
from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number, shown

Box = list[float]
BoxForm = Literal["xyxy", "xywh"]
BOX_FORMS: tuple[BoxForm, ...] = ("xyxy", "xywh")


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
