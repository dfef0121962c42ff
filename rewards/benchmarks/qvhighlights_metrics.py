"""QVHighlights: moment retrieval and highlight detection, to the digit of the official scorer.

    R predicted windows   W reference windows   K thresholds   C clips   L levels   A annotators   B = L · A   T distinct scores

Records are those of the published files. A reference: {"qid", "duration", "relevant_windows": [[start, end], …], "relevant_clip_ids":
[…], "saliency_scores": [[3 annotators, 0 to 4], …]}. A prediction: {"qid", "pred_relevant_windows": [[start, end, score], …],
"pred_saliency_scores": [one per clip]}; either may be missing. Figures are in per cent.

Source: section 4 of arXiv:2107.09609 and its released scorer. Grade A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_mm.rewards.benchmarks.window_metrics import Floats, hull_iou, recall_at, set_iou

Record = Mapping[str, Any]
THRESHOLDS_K = np.round(np.arange(0.5, 0.96, 0.05), 2)
LENGTHS = {"full": (-np.inf, np.inf), "short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}
"""Subset → seconds (above, up to) of the reference windows that it keeps."""
LEVELS = {"fair": 2, "good": 3, "very_good": 4}
"""Level → the least score of an annotator that makes a clip a highlight. Papers quote "very_good"."""
CLIP_SECONDS, MAX_WINDOWS = 2, 10


def moment_retrieval(predictions: Sequence[Record], references: Sequence[Record]) -> dict[str, dict[str, float]]:
    """R1 and mean average precision, over all references and over those of a length.

    R1 takes the first listed window; its reference is that of highest set IoU, and the hull IoU must reach the threshold.
    Average precision takes the first ten listed windows by falling score, each matched to the best still free reference
    of enough set IoU.

    Returns:
        Subset ("full", "short", "middle", "long") → {"r1_at_0.5", …, "r1_at_0.95", "map_at_0.5", …, "map_at_0.95", "map"
        (their mean)} in per cent, and "queries", the number of those with a reference in the subset; NaN where that is
        0. A query without a prediction counts as 0.

    Raises:
        ValueError: a qid stands twice, or a prediction is for none of the references.
    """
    windows = _by_qid(predictions, references, "pred_relevant_windows")
    return {name: _moments(windows, references, *bounds) for name, bounds in LENGTHS.items()}


def highlight_detection(predictions: Sequence[Record], references: Sequence[Record]) -> dict[str, dict[str, float]]:
    """HIT@1 and mean average precision of clip scores, at three levels of what annotators call a highlight.

    HIT@1: any annotator has the clip of the highest score (the first of several, among those predicted) as a highlight.
    Average precision: the mean over annotators, then over queries; predicted scores are padded with 0 or cut to the clips
    of the video, duration // 2 (75 of the usual 150 s, fewer of some).

    Returns:
        Level ("fair", "good", "very_good") → {"hit_at_1", "map"} in per cent, and "queries", a number. A query without
        predicted scores counts as 0; give only the references that were asked to score a part of them.

    Raises:
        ValueError: as `moment_retrieval`, or a predicted score is NaN.
    """
    scores = _by_qid(predictions, references, "pred_saliency_scores")
    hit, precision = np.zeros((len(references), len(LEVELS))), np.zeros((len(references), len(LEVELS)))
    for q, reference in enumerate(references):
        own = np.asarray(scores.get(reference["qid"], ()), dtype=np.float64)
        if np.isnan(own).any():
            raise ValueError(f"qid {reference['qid']}: a predicted saliency score is NaN; wanted numbers.")
        if not len(own):
            continue
        label_LAC = _labels(reference)
        clips, best = label_LAC.shape[-1], int(own.argmax())
        hit[q] = label_LAC[:, :, best].any(1) if best < clips else False
        score_C = np.pad(own[:clips], (0, max(0, clips - len(own))))
        precision[q] = _clip_precision(score_C, label_LAC.reshape(-1, clips)).reshape(len(LEVELS), -1).mean(1)
    hits, maps = 100 * hit.mean(0), 100 * precision.mean(0)
    return {
        level: {"hit_at_1": float(hits[i]), "map": float(maps[i]), "queries": float(len(references))}
        for i, level in enumerate(LEVELS)
    }


def window_precision(windows_R3: Floats, references_W2: Floats) -> Floats:
    """Average precision of scored windows of one query at each threshold, [K] in [0, 1].

    The area under the step curve of precision over recall, precision made monotone from the right.
    """
    if not len(windows_R3):
        return np.zeros(len(THRESHOLDS_K))
    order = np.argsort(-windows_R3[:, 2], kind="stable")
    iou_RW = set_iou(windows_R3[order, :2], references_W2)
    is_hit_KR = np.zeros((len(THRESHOLDS_K), len(order)), dtype=bool)
    is_free_KW = np.ones((len(THRESHOLDS_K), len(references_W2)), dtype=bool)
    every = np.arange(len(THRESHOLDS_K))
    for r, iou_W in enumerate(iou_RW):
        fits_KW = is_free_KW & (iou_W >= THRESHOLDS_K[:, None])
        best_K = np.where(fits_KW, iou_W, -1.0).argmax(1)
        is_hit_KR[:, r] = fits_KW[every, best_K]
        is_free_KW[every, best_K] &= ~is_hit_KR[:, r]
    precision_KR = is_hit_KR.cumsum(1) / np.arange(1, len(order) + 1)
    monotone_KR = np.maximum.accumulate(precision_KR[:, ::-1], axis=1)[:, ::-1]
    # Recall rises by one reference at every hit and nowhere else.
    return (monotone_KR * is_hit_KR).sum(1) / len(references_W2)


def _moments(windows: Mapping[Any, Any], references: Sequence[Record], above: float, up_to: float) -> dict[str, float]:
    iou, precision = [], []
    for reference in references:
        wanted_W2 = np.asarray(reference["relevant_windows"], dtype=np.float64).reshape(-1, 2)
        length_W = wanted_W2[:, 1] - wanted_W2[:, 0]
        wanted_W2 = wanted_W2[(length_W > above) & (length_W <= up_to)]
        if not len(wanted_W2):
            continue
        own_R3 = np.asarray(windows.get(reference["qid"], ()), dtype=np.float64).reshape(-1, 3)[:MAX_WINDOWS]
        precision.append(window_precision(own_R3, wanted_W2))
        nearest = set_iou(own_R3[:1, :2], wanted_W2).argmax(1)
        iou.append(float(hull_iou(own_R3[:1, :2], wanted_W2[nearest])[0, 0]) if len(own_R3) else 0.0)
    if not iou:
        iou, precision = [np.nan], [np.full(len(THRESHOLDS_K), np.nan)]
    mean_K = 100 * np.mean(precision, axis=0)
    return {
        **recall_at(np.array(iou), THRESHOLDS_K.tolist(), strict=False),
        **{f"map_at_{m:g}": float(value) for m, value in zip(THRESHOLDS_K, mean_K)},
        "map": float(mean_K.mean()),
        "queries": float(np.isfinite(iou).sum()),
    }


def _labels(reference: Record) -> np.ndarray:
    """Which clips are highlights, [levels, annotators, C] bool; clips that are not listed are none."""
    saliency_CA = np.zeros((int(reference["duration"] / CLIP_SECONDS), 3))
    saliency_CA[list(reference["relevant_clip_ids"])] = reference["saliency_scores"]
    return np.stack([least <= saliency_CA.T for least in LEVELS.values()])


def _clip_precision(score_C: Floats, label_BC: np.ndarray) -> Floats:
    """Average precision of clip scores against each row of labels, [B] in [0, 1]; 0 without a positive, 1 if all are.

    One (recall, precision) point per distinct score as threshold, from the lowest score to the highest, then recall 0;
    precision is replaced by its running maximum, and averaged where the next recall is another.
    """
    level_C = np.unique(score_C, return_inverse=True)[1].reshape(-1)
    is_level_CT = level_C[:, None] == np.arange(level_C.max() + 1)
    # Clips at or above each distinct score, all of them and the positive ones.
    selected_T = is_level_CT.sum(0)[::-1].cumsum()[::-1]
    positive_BT = (label_BC.astype(np.int64) @ is_level_CT)[:, ::-1].cumsum(1)[:, ::-1]
    precision_BT = np.maximum.accumulate(positive_BT / selected_T, axis=1)
    falls_BT = np.diff(positive_BT, axis=1, append=0) != 0  # the appended point has recall 0
    return (precision_BT * falls_BT).sum(1) / np.maximum(falls_BT.sum(1), 1)


def _by_qid(predictions: Sequence[Record], references: Sequence[Record], field: str) -> dict[Any, Any]:
    """qid → that field of the prediction, where it has one."""
    for name, records in (("predictions", predictions), ("references", references)):
        qids = [record["qid"] for record in records]
        if len(set(qids)) < len(qids):
            raise ValueError(f"{len(qids) - len(set(qids))} qids stand more than once in the {name}; wanted each once.")
    surplus = {record["qid"] for record in predictions} - {record["qid"] for record in references}
    if surplus:
        raise ValueError(
            f"{len(surplus)} predictions have a qid that is in no reference, e.g. {next(iter(surplus))!r}; "
            "score them against their own split."
        )
    return {record["qid"]: record[field] for record in predictions if record.get(field)}
