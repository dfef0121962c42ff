"""How much do boxes overlap? IoU, generalised IoU, complete IoU, and the IoU of unions, on tensors of corners.

    R boxes of one set   W boxes of the other   a box is (x1, y1, x2, y2), in pixels, x to the right and y downwards

Nothing here raises, whatever the numbers are. A box is *valid* if its corners are finite and in order (x1 <= x2, y1 <= y2);
negative corners are plain numbers, and a box may be empty (zero width or height). With a box that is not valid, IoU is 0, and
generalised and complete IoU are at their lower bounds. No result is NaN; where areas overflow (corners beyond 1e150), boxes
count as not valid. Areas are continuous, (x2 - x1) · (y2 - y1), unless `inclusive` counts both border pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

GIOU_LEAST = -1.0
CIOU_LEAST = -1.5
"""No pair of valid boxes reaches it: 0 - d²/c² > -1, and the term of the shapes is at most 1/2 where nothing overlaps."""
_LARGEST = 1e150


def as_boxes(boxes: Tensor | Sequence[Sequence[float]] | Any) -> Tensor:
    """[R, 4] float64 of a list of boxes or of a tensor; [0, 4] of an empty one."""
    return torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)


def is_valid(boxes_R4: Tensor) -> Tensor:
    """[R] bool: corners finite and in order."""
    is_number_R = (boxes_R4.abs() < _LARGEST).all(dim=-1)  # False for NaN
    return is_number_R & (boxes_R4[..., 0] <= boxes_R4[..., 2]) & (boxes_R4[..., 1] <= boxes_R4[..., 3])


def iou(boxes_R4: Tensor, boxes_W4: Tensor, *, inclusive: bool = False) -> Tensor:
    """[R, W] shared area over covered area, in [0, 1]; symmetric.

    0 if both boxes are empty, also if they are the same (0/0: the specification leaves it open).

    Args:
        inclusive: corners are pixels that belong to the box, so a width is x2 - x1 + 1, and an empty box is one pixel.
    """
    shared_RW, covered_RW, _ = _areas(boxes_R4, boxes_W4, inclusive=inclusive)
    return torch.where(covered_RW > 0, shared_RW / covered_RW, 0.0).clamp(max=1)


def giou(boxes_R4: Tensor, boxes_W4: Tensor, *, inclusive: bool = False) -> Tensor:
    """[R, W] generalised IoU: IoU - (hull - covered) / hull, in [-1, 1]; symmetric.

    The hull is the smallest box around both. If it is empty, IoU alone. Not the score of that name in GRIT's tables, which
    is `union_iou`.

    Source: arXiv:1902.09630. Formula from memory of the paper, checked against boxes by hand.
    """
    shared_RW, covered_RW, hull_RW = _areas(boxes_R4, boxes_W4, inclusive=inclusive)
    iou_RW = torch.where(covered_RW > 0, shared_RW / covered_RW, 0.0).clamp(max=1)
    around_RW = torch.where(hull_RW > 0, (hull_RW - covered_RW) / hull_RW, 0.0).clamp(min=0)  # below 0 by rounding only
    return torch.where(_pairs_valid(boxes_R4, boxes_W4), iou_RW - around_RW, GIOU_LEAST)


def ciou(boxes_R4: Tensor, boxes_W4: Tensor) -> Tensor:
    """[R, W] complete IoU: IoU - d²/c² - α·v, in [-1.5, 1]; symmetric, 1 for a box with itself unless it is empty.

    d is the distance of the centres, c the diagonal of the smallest box around both,
    v = (4/π²)(atan(w/h) - atan(w'/h'))², α = v / ((1 - IoU) + v), and 0 where v = 0. A box without height has atan = π/2,
    one without width and height 0.

    Source: FGRPO (arXiv:2604.08476), spatial grounding. Grade B.
    """
    own_R14, other_1W4 = _zeroed(boxes_R4)[:, None], _zeroed(boxes_W4)[None]
    iou_RW = iou(boxes_R4, boxes_W4)
    between = own_R14 - other_1W4  # corner by corner first: the same whichever is subtracted, at any size
    between = (between[..., :2] + between[..., 2:]) / 2
    around = torch.maximum(own_R14[..., 2:], other_1W4[..., 2:]) - torch.minimum(own_R14[..., :2], other_1W4[..., :2])
    distance_RW, diagonal_RW = torch.linalg.vector_norm(between, dim=-1), torch.linalg.vector_norm(around, dim=-1)
    away_RW = torch.where(diagonal_RW > 0, distance_RW / diagonal_RW, 0.0) ** 2
    v_RW = (4 / math.pi**2) * (_shape(own_R14) - _shape(other_1W4)) ** 2
    alpha_RW = torch.where(v_RW > 0, v_RW / ((1 - iou_RW) + v_RW), 0.0)
    return torch.where(_pairs_valid(boxes_R4, boxes_W4), iou_RW - away_RW - alpha_RW * v_RW, CIOU_LEAST)


def dual_iou(boxes_R4: Tensor, references_W4: Tensor) -> tuple[float, float, float]:
    """(recall, precision, their mean): each box with its best partner on the other side, which may serve several.

    recall = mean over references of the best IoU with a box, precision = mean over boxes of the best IoU with a reference;
    0 where one side is empty.

    Source: TreeVGR, arXiv:2507.07999, dual IoU reward. Grade B. Uncertain: the paper names no value for no boxes; here 0.
    """
    iou_RW = iou(boxes_R4, references_W4)
    if 0 in iou_RW.shape:
        return 0.0, 0.0, 0.0
    recall, precision = iou_RW.amax(dim=0).mean().item(), iou_RW.amax(dim=1).mean().item()
    return recall, precision, (recall + precision) / 2


def union_iou(boxes_R4: Tensor, references_W4: Tensor) -> float:
    """Area that both sets cover over the area that one or the other covers, in [0, 1]; exact, from a sweep along x.

    Boxes that are not valid cover nothing. 0 if nothing is covered. R + W steps of R + W numbers each.

    Source: GRIT (arXiv:2505.15879), grounding IoU, called GIoU in its tables: it counts pixels of a raster. Grade B.
    """
    boxes = torch.cat([boxes_R4[is_valid(boxes_R4)], references_W4[is_valid(references_W4)]])
    if len(boxes) == 0:
        return 0.0
    is_reference = torch.arange(len(boxes)) >= int(is_valid(boxes_R4).sum())
    ys, edges_Y = torch.unique(boxes[:, [1, 3]], return_inverse=True)
    heights, low, high = ys.diff(), edges_Y[:, 0].tolist(), edges_Y[:, 1].tolist()
    events = sorted(
        (x, box, change) for box, (x1, _, x2, _) in enumerate(boxes.tolist()) for x, change in ((x1, 1), (x2, -1))
    )
    count = torch.zeros(2, len(heights), dtype=torch.int64)  # boxes of each set over each stripe of y, at this x
    shared = covered = 0.0
    for (x, box, change), (next_x, _, _) in zip(events, events[1:]):
        count[int(is_reference[box]), low[box] : high[box]] += change
        if next_x > x:
            here = count > 0
            shared += (next_x - x) * heights[here.all(dim=0)].sum().item()
            covered += (next_x - x) * heights[here.any(dim=0)].sum().item()
    return shared / covered if covered > 0 else 0.0


def in_order(boxes_R4: Tensor) -> Tensor:
    """[R, 4] the same boxes sorted by their numbers, so that what follows does not depend on the order they came in."""
    return as_boxes(sorted(boxes_R4.tolist())) if len(boxes_R4) > 1 else boxes_R4


def _areas(boxes_R4: Tensor, boxes_W4: Tensor, *, inclusive: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Shared, covered and hull area [R, W]; nothing is shared with a box that is not valid."""
    one = float(inclusive)
    own_R14, other_1W4 = _zeroed(boxes_R4)[:, None], _zeroed(boxes_W4)[None]
    low, high = torch.maximum, torch.minimum
    sides = high(own_R14[..., 2:], other_1W4[..., 2:]) - low(own_R14[..., :2], other_1W4[..., :2]) + one
    hull = low(own_R14[..., 2:], other_1W4[..., 2:]) - high(own_R14[..., :2], other_1W4[..., :2]) + one
    shared_RW = sides.clamp(min=0).prod(dim=-1) * _pairs_valid(boxes_R4, boxes_W4)
    own_R1 = (own_R14[..., 2:] - own_R14[..., :2] + one).prod(dim=-1)
    other_1W = (other_1W4[..., 2:] - other_1W4[..., :2] + one).prod(dim=-1)
    return shared_RW, own_R1 + other_1W - shared_RW, hull.prod(dim=-1)


def _pairs_valid(boxes_R4: Tensor, boxes_W4: Tensor) -> Tensor:
    return is_valid(boxes_R4)[:, None] & is_valid(boxes_W4)[None]


def _zeroed(boxes_R4: Tensor) -> Tensor:
    return torch.where(is_valid(boxes_R4)[:, None], boxes_R4.double(), 0.0)


def _shape(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(dim=-1)
    return torch.atan2(width, height)
