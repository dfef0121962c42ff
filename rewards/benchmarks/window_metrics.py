"""Temporal grounding benchmarks: R1@m and mIoU, and the grounded question answering of NExT-GQA.

    N queries   R predicted windows   W reference windows

A prediction that could not be read is None: it counts as 0 and stays in the denominator. Figures are in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Window = Sequence[float]
THRESHOLDS = (0.3, 0.5, 0.7)


def grounding_metrics(
    predictions: Sequence[Window | None],
    references: Sequence[Sequence[Window]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    strict: bool = False,
    kind: Literal["hull", "set"] = "hull",
) -> dict[str, float]:
    """R1@m and mIoU of one predicted window per query.

    Args:
        predictions: [N] (start, end) in seconds, or None.
        references: [N] lists of (start, end), at least one each; the best of them counts.
        strict: R1 wants IoU > m (Time-R1, arXiv:2503.13377) instead of IoU >= m (most others).
        kind: see `hull_iou` and `set_iou`; they differ for no valid window.

    Returns:
        "r1_at_0.3", …, "miou" and "parse_failed" in per cent, and "queries", a number.

    Raises:
        ValueError: the lengths differ, there is no query, or a query has no reference.
    """
    iou_N = best_iou(predictions, references, kind=kind)
    failed = np.mean([own is None for own in predictions])
    counts = {"parse_failed": 100 * float(failed), "queries": float(len(iou_N))}
    return {**recall_at(iou_N, thresholds, strict=strict), "miou": _per_cent(iou_N), **counts}


def best_iou(
    predictions: Sequence[Window | None],
    references: Sequence[Sequence[Window]],
    *,
    kind: Literal["hull", "set"] = "hull",
) -> Floats:
    """[N] in [0, 1]: the IoU of each query's prediction with the best of its references, 0 for None; else as above."""
    _check(predictions, references)
    pair_iou = hull_iou if kind == "hull" else set_iou
    return np.array([_best(pair_iou, own, windows) for own, windows in zip(predictions, references)])


def nextgqa_metrics(
    predictions: Sequence[Window | None], references: Sequence[Sequence[Window]], correct: Sequence[bool]
) -> dict[str, float]:
    """NExT-GQA: how far the predicted window lies within an annotated one (IoP), IoU, and answers that are grounded.

    Args:
        predictions: [N] (start, end) in seconds, or None.
        references: [N] lists of the valid windows of a question; IoP and IoU each take the best one.
        correct: [N] whether the answer is right.

    Returns:
        "miop", "iop_at_0.3", "iop_at_0.5", "miou", "iou_at_0.3", "iou_at_0.5", "acc_qa", "acc_at_gqa" (right and
        IoP >= 0.5) and "parse_failed" in per cent, and "queries", a number.

    Raises:
        ValueError: as `grounding_metrics`.

    Source: the scorer of NExT-GQA. Grade A. As there, a point within a reference has IoP 1 and IoU 0.
    """
    _check(predictions, references)
    if len(correct) != len(predictions):
        raise ValueError(f"{len(correct)} answers for {len(predictions)} predictions; wanted one each.")
    right_N = np.asarray(correct, dtype=bool)
    result: dict[str, float] = {}
    for name, pair in (("iop", iop), ("iou", set_iou)):
        value_N = np.array([_best(pair, own, windows) for own, windows in zip(predictions, references)])
        result[f"m{name}"] = _per_cent(value_N)
        result |= recall_at(value_N, (0.3, 0.5), strict=False, name=name)
        if name == "iop":
            result["acc_at_gqa"] = _per_cent(right_N & (value_N >= 0.5))
    failed = 100 * float(np.mean([own is None for own in predictions]))
    return {**result, "acc_qa": _per_cent(right_N), "parse_failed": failed, "queries": float(len(right_N))}


def shares(found: Mapping[str, float]) -> dict[str, float]:
    """Figures in per cent as shares of 1, as the other held-out scores of a run are.

    Counts of queries are left out, and so is what is NaN: a subset without any query.
    """
    return {name: v / 100 for name, v in found.items() if not name.endswith("queries") and not math.isnan(v)}


def recall_at(value_N: Floats, thresholds: Sequence[float], *, strict: bool, name: str = "r1") -> dict[str, float]:
    """{"r1_at_0.5": the share of values that reach 0.5, in per cent, …}"""
    return {f"{name}_at_{m:g}": _per_cent(value_N > m if strict else value_N >= m) for m in thresholds}


def hull_iou(predicted_R2: ArrayLike, reference_W2: ArrayLike) -> Floats:
    """[R, 2] and [W, 2] -> [R, W]: shared seconds over the seconds from the earlier start to the later end.

    0 for a window that is reversed, infinite or NaN, and for one of zero length, unless both are the same point (1).
    """
    own, other, shared = _pairs(predicted_R2, reference_W2)
    return _ratio(shared, np.maximum(own[..., 1], other[..., 1]) - np.minimum(own[..., 0], other[..., 0]), own, other)


def set_iou(predicted_R2: ArrayLike, reference_W2: ArrayLike) -> Floats:
    """[R, 2] and [W, 2] -> [R, W]: shared seconds over the seconds that one or the other covers; else as `hull_iou`."""
    own, other, shared = _pairs(predicted_R2, reference_W2)
    return _ratio(shared, (own[..., 1] - own[..., 0]) + (other[..., 1] - other[..., 0]) - shared, own, other)


def iop(predicted_R2: ArrayLike, reference_W2: ArrayLike) -> Floats:
    """[R, 2] and [W, 2] -> [R, W]: shared seconds over those of the prediction; of a point, whether the reference holds it."""
    own, other, shared = _pairs(predicted_R2, reference_W2)
    start, end = own[..., 0], own[..., 1]
    is_held_point = (start == end) & (other[..., 0] <= start) & (start <= other[..., 1])
    return np.where(is_held_point, 1.0, np.divide(shared, end - start, out=np.zeros_like(shared), where=shared > 0))


def _pairs(predicted_R2: ArrayLike, reference_W2: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Both as [R, W, 2], those that are not finite as reversed ones, and the shared seconds [R, W]."""
    own = np.asarray(predicted_R2, dtype=np.float64).reshape(-1, 1, 2)
    other = np.asarray(reference_W2, dtype=np.float64).reshape(1, -1, 2)
    own, other = (np.where(np.isfinite(x).all(-1, keepdims=True), x, (0.0, -1.0)) for x in (own, other))
    shared = np.minimum(own[..., 1], other[..., 1]) - np.maximum(own[..., 0], other[..., 0])
    return own, other, np.maximum(shared, 0.0)


def _ratio(shared: Floats, whole: Floats, own: Floats, other: Floats) -> Floats:
    is_same_point = (own[..., 0] == own[..., 1]) & (own == other).all(-1)
    return np.divide(shared, whole, out=is_same_point.astype(np.float64), where=shared > 0)


def _best(pair: Callable[..., Floats], predicted: Window | None, references: Sequence[Window]) -> float:
    return 0.0 if predicted is None else float(pair([predicted], references).max())


def _per_cent(value_N: NDArray) -> float:
    return 100 * float(np.mean(value_N))


def _check(predictions: Sequence[Window | None], references: Sequence[Sequence[Window]]) -> None:
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} queries; wanted one each, None if unread."
        )
    if not references:
        raise ValueError("no queries; wanted at least one.")
    empty = [i for i, windows in enumerate(references) if len(windows) == 0]
    if empty:
        raise ValueError(f"queries {empty[:5]} ({len(empty)} in all) have no reference window; leave them out.")
