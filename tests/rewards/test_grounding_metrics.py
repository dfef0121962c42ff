"""Benchmark metrics by hand, against slow obvious loops, and on small files in the published formats."""

import json
import random

import numpy as np
import pytest

from grpo_mm.rewards.benchmarks import window_metrics as metrics
from grpo_mm.rewards.benchmarks.qvhighlights_metrics import highlight_detection, moment_retrieval, window_precision
from grpo_mm.rewards.benchmarks.window_metrics import grounding_metrics, nextgqa_metrics
from grpo_mm.rewards.video import temporal_iou

INF, NAN = float("inf"), float("nan")


# ── IoU, R1, mIoU ──


def test_metrics_and_rewards_have_the_same_iou():
    rng = random.Random(0)
    ends = [0, 5, 5, 10, 12.5, 20, INF, -INF, NAN]
    own, other = ([(rng.choice(ends), rng.choice(ends)) for _ in range(60)] for _ in range(2))
    for name in ("hull_iou", "set_iou"):
        matrix = getattr(metrics, name)(own, other)
        slow = [[getattr(temporal_iou, name)(p, g) for g in other] for p in own]
        assert matrix == pytest.approx(np.array(slow)) and matrix.max() == 1


def test_unread_predictions_count_as_zero_and_stay_in_the_denominator():
    predictions = [(0, 10), (0, 5), None, (30, 20)]
    found = grounding_metrics(predictions, [[(0, 10)]] * 4)
    assert found == {
        "r1_at_0.3": 50,
        "r1_at_0.5": 50,
        "r1_at_0.7": 25,
        "miou": 37.5,
        "parse_failed": 25,
        "queries": 4,
    }
    strict = grounding_metrics(predictions, [[(0, 10)]] * 4, strict=True)
    assert strict["r1_at_0.5"] == 25 and strict["miou"] == 37.5


def test_the_best_of_several_references_counts():
    assert grounding_metrics([(10, 20)], [[(0, 5), (10, 20)]])["miou"] == 100


def test_metrics_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="1 predictions for 2 queries"):
        grounding_metrics([None], [[(0, 1)]] * 2)
    with pytest.raises(ValueError, match="no queries"):
        grounding_metrics([], [])
    with pytest.raises(ValueError, match=r"queries \[1\] .* no reference window"):
        grounding_metrics([None, None], [[(0, 1)], []])
    with pytest.raises(ValueError, match="1 answers for 2 predictions"):
        nextgqa_metrics([None, None], [[(0, 1)]] * 2, [True])


# ── NExT-GQA ──

NEXTGQA = """{"100": {"duration": 34, "fps": 29.97, "location": {"1": [[1.0, 5.0]], "3": [[12, 17], [20, 24]], "5": [[0, 10]],
"6": [[0, 10]], "7": [[30, 34]]}}}"""


def test_grounded_answers_by_hand():
    references = json.loads(NEXTGQA)["100"]["location"]
    predictions = {"1": (1, 5), "3": (16, 22), "5": (4, 4), "6": (5, 15), "7": None}
    correct = {"1": False, "3": True, "5": True, "6": True, "7": True}
    found = nextgqa_metrics(*([side[qid] for qid in references] for side in (predictions, references, correct)))
    # IoP 1, 2/6 (of the second window), 1 (a point within), 5/10, 0; IoU 1, 2/8, 0, 5/15, 0
    wanted = {
        "miop": 20 * (1 + 1 / 3 + 1 + 0.5),
        "iop_at_0.3": 80,
        "iop_at_0.5": 60,
        "miou": 20 * (1 + 1 / 4 + 1 / 3),
        "iou_at_0.3": 40,
        "iou_at_0.5": 20,
        "acc_qa": 80,
        "acc_at_gqa": 40,
        "parse_failed": 20,
        "queries": 5,
    }
    assert found == pytest.approx(wanted)


def test_a_reference_holds_its_end_points():
    assert metrics.iop([(0, 0), (4, 4), (5, 5)], [(0, 4)]).ravel().tolist() == [1, 1, 0]


# ── QVHighlights ──

REFERENCES = """
{"qid": 1, "query": "a", "duration": 150, "vid": "x_0.0_150.0", "relevant_windows": [[0, 8], [20, 60]], "relevant_clip_ids": [0, 1, 2, 3, 10], "saliency_scores": [[4, 2, 0], [3, 2, 0], [2, 2, 0], [4, 4, 0], [2, 1, 1]]}
{"qid": 2, "query": "b", "duration": 150, "vid": "y_0.0_150.0", "relevant_windows": [[100, 120]], "relevant_clip_ids": [50, 51], "saliency_scores": [[3, 3, 3], [4, 4, 4]]}
{"qid": 3, "query": "c", "duration": 120, "vid": "z_0.0_120.0", "relevant_windows": [[0, 120]], "relevant_clip_ids": [5], "saliency_scores": [[2, 2, 2]]}
"""
PREDICTIONS = """
{"qid": 1, "query": "a", "vid": "x_0.0_150.0", "pred_relevant_windows": [[20, 50, 0.2], [0, 8, 0.9], [70, 90, 0.5]], "pred_saliency_scores": [0.9, 0.1, 0.1, 0.8]}
{"qid": 2, "query": "b", "vid": "y_0.0_150.0", "pred_relevant_windows": [[0, 10, 0.9], [100, 120, 0.8]]}
"""


def records(lines: str) -> list[dict]:
    return [json.loads(line) for line in lines.strip().splitlines()]


def test_moments_by_hand():
    found = moment_retrieval(records(PREDICTIONS), records(REFERENCES))
    full = found["full"]
    # First windows: IoU 30/40, 0, and none for the third query.
    assert full["r1_at_0.5"] == full["r1_at_0.75"] == pytest.approx(100 / 3) and full["r1_at_0.8"] == 0
    # By score the first query has hit, miss, hit up to 0.75: (1 + 2/3) / 2; from 0.8 on hit, miss, miss: 1/2.
    # The second has miss, hit: 1/2.
    assert full["map_at_0.75"] == pytest.approx(100 * (5 / 6 + 1 / 2) / 3)
    assert full["map_at_0.95"] == pytest.approx(100 * (1 / 2 + 1 / 2) / 3)
    assert full["map"] == pytest.approx(np.mean([full[f"map_at_{m:g}"] for m in np.arange(50, 100, 5) / 100]))


def test_length_subsets_keep_only_references_of_their_length():
    found = moment_retrieval(records(PREDICTIONS), records(REFERENCES))
    assert {name: subset["queries"] for name, subset in found.items()} == {
        "full": 3,
        "short": 1,
        "middle": 1,
        "long": 2,
    }
    assert found["short"]["map"] == 100 and found["short"]["r1_at_0.5"] == 0
    assert found["middle"]["map"] == 50 and found["middle"]["r1_at_0.5"] == 0
    assert found["long"]["r1_at_0.75"] == 50
    ends = [{"qid": length, "relevant_windows": [[0, length]]} for length in (0, 10, 30, 150)]
    assert [subset["queries"] for subset in moment_retrieval([], ends).values()] == [4, 1, 1, 1]  # up to and including
    alone = moment_retrieval([], records(REFERENCES)[1:2])
    assert alone["short"]["queries"] == 0 and np.isnan(alone["short"]["map"]) and alone["full"]["map"] == 0


def test_a_window_beyond_the_tenth_is_not_looked_at():
    wanted = records(REFERENCES)[1:2]
    ten = [[0, 1, 0.5]] * 10
    assert moment_retrieval([{"qid": 2, "pred_relevant_windows": [*ten, [100, 120, 1]]}], wanted)["full"]["map"] == 0
    assert moment_retrieval([{"qid": 2, "pred_relevant_windows": [[100, 120, 1], *ten]}], wanted)["full"]["map"] == 100


def slow_window_precision(windows, references, threshold: float) -> float:
    free, hits = list(range(len(references))), []
    for start, end, _ in sorted(windows, key=lambda window: -window[2]):
        iou = {j: temporal_iou.set_iou((start, end), tuple(references[j])) for j in free}
        best = max(iou, key=iou.get, default=None)
        hits.append(best is not None and iou[best] >= threshold)
        if hits[-1]:
            free.remove(best)
    points = [(sum(hits[: i + 1]) / len(references), sum(hits[: i + 1]) / (i + 1)) for i in range(len(hits))]
    area, recall = 0.0, 0.0
    for i, (reached, _) in enumerate(points):
        area += (reached - recall) * max(precision for _, precision in points[i:])
        recall = reached
    return area


def test_window_precision_agrees_with_a_slow_loop():
    rng = random.Random(0)
    seen = set()
    for _ in range(300):
        references = [sorted(rng.sample(range(0, 40, 2), 2)) for _ in range(rng.randint(1, 4))]
        windows = [
            [*sorted(rng.sample(range(0, 40, 2), 2)), score] for score in rng.sample(range(100), rng.randint(0, 9))
        ]
        fast = window_precision(np.array(windows, dtype=float).reshape(-1, 3), np.array(references, dtype=float))
        slow = [slow_window_precision(windows, references, m) for m in np.arange(50, 100, 5) / 100]
        assert fast == pytest.approx(np.array(slow))
        seen |= set(np.round(slow, 3))
    assert len(seen) > 20


def test_highlights_by_hand():
    found = highlight_detection(records(PREDICTIONS), records(REFERENCES))
    # Only the first query has scores. Its best clip, 0, is "very good" to the first annotator.
    assert found["very_good"]["hit_at_1"] == pytest.approx(100 / 3) and found["fair"]["queries"] == 3
    # Very good: clips 0 and 3 to the first annotator, 3 to the second, none to the third. The scores .9, .8, .1 (two
    # clips), 0 (71 clips) are the thresholds. First: 2 of 2, then 1 of 1. Second: 1 of 2.
    assert found["very_good"]["map"] == pytest.approx(100 * np.mean([1, 0.5, 0]) / 3)
    # Fair: 0-3 and 10, then 0-3, then none. Thresholds 0, .1, .8, .9 have 5/75, 4/4, 2/2, 1/1; the running maximum leaves them.
    assert found["fair"]["map"] == pytest.approx(100 * np.mean([np.mean([5 / 75, 1, 1, 1]), 1, 0]) / 3)


def test_scores_beyond_the_video_are_cut_and_cannot_hit():
    video = records(REFERENCES)[2:]  # 120 s, 60 clips
    scores = [0.0] * 75
    scores[5], scores[70] = 0.5, 0.9
    found = highlight_detection([{"qid": 3, "pred_saliency_scores": scores}], video)["fair"]
    assert found["hit_at_1"] == 0 and found["map"] == 100
    short = highlight_detection([{"qid": 3, "pred_saliency_scores": scores[:6]}], video)["fair"]
    assert short["hit_at_1"] == 100 == short["map"]


def slow_clip_precision(scores, labels) -> float:
    if not any(labels) or all(labels):
        return float(all(labels))
    points = []
    for threshold in sorted(set(scores)):
        chosen = [label for score, label in zip(scores, labels) if score >= threshold]
        points.append((sum(chosen) / sum(labels), sum(chosen) / len(chosen)))
    points.append((0.0, 1.0))
    values = [max(p for _, p in points[: i + 1]) for i in range(len(points) - 1) if points[i][0] != points[i + 1][0]]
    return sum(values) / len(values)


def test_clip_precision_agrees_with_a_slow_loop():
    rng = random.Random(0)
    for trial in range(60):
        clips = rng.randint(1, 12)
        table = [[rng.choice((0, 2, 3, 4)) for _ in range(3)] for _ in range(clips)]
        scores = [rng.choice((-1.0, 0.0, 0.5, 1.0)) for _ in range(clips)]
        reference = {"qid": trial, "duration": 2 * clips, "relevant_clip_ids": range(clips), "saliency_scores": table}
        found = highlight_detection([{"qid": trial, "pred_saliency_scores": scores}], [reference])
        for level, least in (("fair", 2), ("good", 3), ("very_good", 4)):
            by_annotator = [slow_clip_precision(scores, [row[a] >= least for row in table]) for a in range(3)]
            assert found[level]["map"] == pytest.approx(100 * np.mean(by_annotator))
            best = scores.index(max(scores))
            assert found[level]["hit_at_1"] == 100 * (max(table[best]) >= least)


@pytest.mark.parametrize("scorer", [moment_retrieval, highlight_detection])
def test_foreign_and_repeated_queries_are_refused(scorer):
    with pytest.raises(ValueError, match="1 predictions have a qid that is in no reference, e.g. 7"):
        scorer([{"qid": 7}], records(REFERENCES))
    with pytest.raises(ValueError, match="1 qids stand more than once in the predictions"):
        scorer([{"qid": 1}, {"qid": 1}], records(REFERENCES))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="qid 1: a predicted saliency score is NaN"):
        highlight_detection([{"qid": 1, "pred_saliency_scores": [NAN]}], records(REFERENCES))
