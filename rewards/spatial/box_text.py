"""Reading boxes and points out of what a model wrote. Nothing here raises, whatever the text.

A box is (x1, y1, x2, y2) as written: in the model's own coordinates, maybe reversed or infinite ("1e999"); see `box_reading`
for what is done about that. Every function takes time in proportion to the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Literal, NamedTuple

from grpo_mm.outside import finite_number
from grpo_mm.rewards.answers.writing import plain_signs
from grpo_mm.rewards.spatial.boxes import as_boxes, iou

Box = tuple[float, float, float, float]
Form = Literal["brackets", "element", "json", "integers"]
ReversedCorners = Literal["sort", "reject"]


class FoundBox(NamedTuple):
    """Example: {"bbox_2d": [1, 2, 3, 4], "label": "cat"} gives FoundBox((1.0, 2.0, 3.0, 4.0), "cat")."""

    box: Box
    label: str = ""
    """Of the JSON object that holds the box; "" elsewhere."""
    confidence: float | None = None


def parse_boxes(text: str, *, form: Form = "brackets", most: int | None = None) -> list[FoundBox]:
    """The boxes of a text, in its order; [] if there are none.

    Args:
        form: `brackets` takes every [x1, y1, x2, y2], with round or square brackets, wherever it stands, so also those of the
            forms below; (x1, y1), (x2, y2) as Qwen2-VL writes them; and <bbox>x1, y1, x2, y2</bbox>. Lists of more or
            fewer numbers, and of more points than two, are no box.
            `element` takes those between <bbox> and </bbox>, <box> and </box>, <|box_start|> and <|box_end|>.
            `json` takes those under the key bbox_2d, bbox, bboxes, box_2d, box, boxes, bounding_box or position, also four
            numbers in quotation marks, with label and confidence of the same object, unless another object lies between. The
            text need not be valid JSON: of a truncated one the complete boxes are read.
            `integers` takes four integers with commas between, anywhere (GRIT, arXiv:2505.15879). Eight are two boxes; four of
            which the first is below 0 are none.
        most: stop after so many.

    Digits may be of any script, and commas and brackets of full width. A box that is cut off is none.
    """
    plain = plain_signs(text)
    if form == "json":
        return list(islice((box for piece in re.split(r"[{}]", plain) for box in _in_object(piece)), most))
    pieces = [plain] if form != "element" else [found[0] for found in _ELEMENT.finditer(plain)]
    token = _INTEGERS if form == "integers" else _TOKEN
    boxes = (_numbers(found[0]) for piece in pieces for found in token.finditer(piece))
    return [FoundBox(tuple(box)) for box in islice((box for box in boxes if len(box) == 4), most)]


def parse_points(text: str) -> list[tuple[float, float]]:
    """Every (x, y) of a text, with round or square brackets, in its order, as written."""
    return [tuple(_numbers(found[0])) for found in _LONE_POINT.finditer(plain_signs(text))]


def strict_box_list(text: str) -> list[Box] | None:
    """The boxes of a list such as "[[0.1, 0.5, 0.3, 0.6], [0, 0, 1, 1]]", blanks and line breaks allowed; None for all else.

    An empty list is none. Source: VideoChat-R1's tracks, arXiv:2504.06958, which are read as a Python literal.
    """
    if _BOX_LIST.fullmatch(text) is None:
        return None
    numbers = _numbers(text)
    return [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


def names_nothing(text: str) -> bool:
    """Whether a text says that there is no box: an empty list in JSON, alone, under a key for boxes, or in a code fence, or
    "None", as VLM-R1 (arXiv:2504.07615) asks for it.

    No text at all, and a text in which no box can be read, are something else.
    """
    return _NOTHING.fullmatch(plain_signs(text)) is not None


def tidied(
    found: Sequence[FoundBox], *, reversed_corners: ReversedCorners = "sort", merge_iou: float | None = 0.95
) -> list[FoundBox]:
    """Boxes with their corners in order, and without those that overlap an earlier one of the same label.

    Args:
        reversed_corners: `sort` puts x1, x2 and y1, y2 in order; `reject` leaves such a box out.
        merge_iou: boxes above this IoU with one that is kept are the same; None keeps all. Of n boxes it takes n² steps.
    """
    if reversed_corners == "sort":
        found = [one._replace(box=_sorted(one.box)) for one in found]
    else:
        found = [one for one in found if one.box == _sorted(one.box)]
    if merge_iou is None or len(found) < 2:
        return list(found)
    same_RR = iou(*[as_boxes([one.box for one in found])] * 2) > merge_iou
    kept: list[int] = []
    for i, row in enumerate(same_RR.tolist()):
        if not any(row[k] and found[k].label == found[i].label for k in kept):
            kept.append(i)
    return [found[i] for i in kept]


# Repetitions are possessive (++), so that nothing is read twice.
_N = r"[+-]?(?:\d{1,40}+(?:\.\d{0,40}+)?+|\.\d{1,40}+)(?:[eE][+-]?\d{1,3}+)?+"
_COMMA = r"\s*+,\s*+"
_FOUR = rf"\s*+{_COMMA.join([_N] * 4)}\s*+"
_QUAD = rf"(?:[\[(]{_FOUR}[\])]|<b?box>{_FOUR}</b?box>)"
_BOX_LIST = re.compile(rf"\s*+\[\s*+\[{_FOUR}\]\s*+(?:,\s*+\[{_FOUR}\]\s*+)*+(?:,\s*+)?+\]\s*+")
_POINT = rf"[\[(]\s*+{_N}{_COMMA}{_N}\s*+[\])]"
_TOKEN = re.compile(rf"{_QUAD}|{_POINT}(?:{_COMMA}{_POINT})*+")
_LONE_POINT = re.compile(_POINT)
_INTEGERS = re.compile(r"(?<![\d.])(?<!(?<!\w)-)" + _COMMA.join([r"\d{1,40}+"] * 4) + r"(?!\d|\.\d)")
_NUMBER = re.compile(_N)
_ELEMENT = re.compile(r"<(b?box)>[^<]*+</\1>|<\|box_start\|>[^<]*+<\|box_end\|>")
_KEYS = r"(?:bbox_2d|bbox|bboxes|box_2d|box|boxes|bounding_box|bounding_boxes|position)"
_WRITTEN = rf"(?:{_FOUR}|\s*+[\[(]{_FOUR}[\])]\s*+)"
_BOX_KEY = re.compile(
    rf"""["']{_KEYS}["']\s*+:\s*+(?:\[\s*+(?=\[))?+(?P<boxes>{_QUAD}(?:{_COMMA}{_QUAD})*+|"{_WRITTEN}"|'{_WRITTEN}')""",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    rf"""\s*+(?:```(?:json)?\s*+)?+(?:\[\s*+\]|none\.?|\{{\s*+["'](?:{_KEYS}|objects|detections)["']\s*+:\s*+\[\s*+\]\s*+\}})\s*+(?:```\s*+)?+""",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"""["'](?:label|class|category|name)["']\s*+:\s*+(?:"([^"]{0,200}+)"|'([^']{0,200}+)')""", re.IGNORECASE
)
_CONFIDENCE = re.compile(rf"""["'](?:confidence|score)["']\s*+:\s*+["']?+({_N})(\s?%)?+(?![\w./]|,\d)""", re.IGNORECASE)


def _in_object(piece: str) -> list[FoundBox]:
    keys = list(_BOX_KEY.finditer(piece))
    if not keys:
        return []
    label, confidence = _LABEL.search(piece), _CONFIDENCE.search(piece)
    name = "" if label is None else (label[1] or label[2] or "")
    sure = None if confidence is None else finite_number(float(confidence[1]) / (100 if confidence[2] else 1))
    numbers = [value for key in keys for value in _numbers(key["boxes"])]
    return [FoundBox(tuple(numbers[i : i + 4]), name, sure) for i in range(0, len(numbers), 4)]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(text)]


def _sorted(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
