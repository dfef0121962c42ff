"""Which box belongs to which reference? One-to-one matching from a table of scores, and average precision.

    R boxes   W references   score_RW: higher is better, e.g. IoU

Equal input gives equal output. Scores that are NaN or infinite count as the worst there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pairs = list[tuple[int, int]]
"""(box, reference), each in one pair at most, in the order of the boxes."""


def hungarian(score_RW: Tensor) -> Pairs:
    """The min(R, W) pairs of the largest total score. Of equal totals the one that scipy finds: always the same for one table."""
    from scipy.optimize import linear_sum_assignment

    finite_RW = torch.where(score_RW.isfinite(), score_RW.double(), -1e6)
    boxes, references = linear_sum_assignment(finite_RW.numpy(), maximize=True)
    return list(zip(boxes.tolist(), references.tolist()))


def greedy_by_confidence(
    score_RW: Tensor, confidence_R: Sequence[float] | Tensor, *, threshold: float, strict: bool = True
) -> Pairs:
    """Boxes from the most confident on take the best reference that is still free, if it scores above the threshold.

    Ties go to what comes first; a confidence that is NaN comes last.

    Args:
        strict: above the threshold; else at least it.
    """
    score_RW = _finite(score_RW)
    confidence_R = torch.as_tensor(confidence_R, dtype=torch.float64).nan_to_num(nan=-torch.inf)
    free_W = torch.ones(score_RW.shape[1], dtype=torch.bool)
    pairs: Pairs = []
    for box in torch.argsort(confidence_R, descending=True, stable=True).tolist():
        if not free_W.any():
            break
        best, reference = torch.where(free_W, score_RW[box], -torch.inf).max(dim=0)
        if best > threshold or (not strict and best == threshold):
            free_W[reference] = False
            pairs.append((box, int(reference)))
    return sorted(pairs)


def greedy_by_score(score_RW: Tensor, *, threshold: float) -> Pairs:
    """The best pair of all that are left, again and again, as long as it scores at least the threshold.

    Ties go to the first box, then to the first reference.
    """
    score_RW = _finite(score_RW)
    boxes, references = torch.nonzero(score_RW >= threshold, as_tuple=True)
    order = torch.argsort(score_RW[boxes, references], descending=True, stable=True)
    taken_boxes: set[int] = set()
    taken_references: set[int] = set()
    pairs: Pairs = []
    for box, reference in zip(boxes[order].tolist(), references[order].tolist()):
        if box not in taken_boxes and reference not in taken_references:
            taken_boxes.add(box)
            taken_references.add(reference)
            pairs.append((box, reference))
    return sorted(pairs)


def _finite(score_RW: Tensor) -> Tensor:
    return torch.where(score_RW.isfinite(), score_RW.double(), -torch.inf)
