"""The figures that official scorers print for real predictions, from a folder outside the repository."""

import json
import os
from pathlib import Path

import pytest
from linear_time import no_more_than

from grpo_mm.rewards.benchmarks.qvhighlights_metrics import highlight_detection, moment_retrieval
from grpo_mm.rewards.benchmarks.window_metrics import grounding_metrics, nextgqa_metrics
from grpo_mm.rewards.text.spans import parse_spans
from grpo_mm.rewards.video.temporal_iou import TemporalIou
from grpo_mm.types import Prompt

DATA = Path(os.environ.get("GRPO_MM_TEST_DATA") or Path(__file__).parents[2] / "../shared/data") / "vlm"
pytestmark = [pytest.mark.realdata, pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}")]


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def references() -> list[dict]:
    return lines("qvhighlights/highlight_val_release.jsonl")


@pytest.fixture(scope="module")
def predictions() -> list[dict]:
    return lines("qvhighlights/moment_detr_sample_val_preds.jsonl")


@pytest.fixture(scope="module")
def official() -> dict:
    return json.loads((DATA / "qvhighlights/moment_detr_sample_val_preds_metrics.json").read_text())


def test_moment_retrieval_prints_the_official_figures(predictions, references, official):
    with no_more_than(10):
        found = moment_retrieval(predictions, references)
    for subset in ("full", "short", "middle", "long"):
        ours = {name: round(value, 2) for name, value in found[subset].items() if name != "queries"}
        theirs = {f"r1_at_{float(m):g}": value for m, value in official[subset]["MR-R1"].items()}
        by_threshold = official[subset]["MR-mAP"]
        theirs |= {f"map_at_{float(m):g}": value for m, value in by_threshold.items() if m != "average"}
        assert ours == theirs | {"map": by_threshold["average"]}
    full = found["full"]
    printed = [round(full[name], 2) for name in ("r1_at_0.5", "r1_at_0.7", "map", "map_at_0.5", "map_at_0.75")]
    assert printed == [53.94, 34.84, 32.20, 54.96, 31.01] and full["queries"] == 1550


def rounded(found: dict) -> dict:
    return {level: (round(row["map"], 2), round(row["hit_at_1"], 2)) for level, row in found.items()}


def test_highlight_detection_prints_the_official_figures(predictions, references):
    with no_more_than(10):
        found = highlight_detection(predictions, references)
    assert rounded(found) == {"fair": (67.77, 66.45), "good": (58.09, 64.45), "very_good": (35.65, 55.55)}


def test_ragged_highlight_scores_of_a_language_model(references):
    predictions = json.loads((DATA / "timechat_metrics/qvhighlights_val_pred.json").read_text())
    qids = {row["qid"] for row in predictions}
    found = highlight_detection(predictions, [row for row in references if row["qid"] in qids])
    assert rounded(found) == {"fair": (28.80, 24.61), "good": (22.80, 23.17), "very_good": (13.24, 18.87)}
    assert found["fair"]["queries"] == 1463


def test_charades_predictions_of_a_language_model_through_metrics_and_reward():
    predictions = json.loads((DATA / "timechat_metrics/charades_sta_pred_500.json").read_text())
    annotations = json.loads((DATA / "timechat_metrics/charades_sta_gt_500.json").read_text())["annotations"]
    windows = [(predictions[str(row["id"])]["timestamp"] or [None])[0] for row in annotations]
    found = grounding_metrics(windows, [[row["timestamp"]] for row in annotations])
    printed = [round(found[f"r1_at_{m}"], 1) for m in (0.3, 0.5, 0.7)]
    assert printed == [9.0, 3.4, 1.4] and round(found["miou"], 4) == 6.2998
    assert found["parse_failed"] == pytest.approx(56)  # 280 of 500
    texts = ["" if window is None else f"<answer>{window[0]} to {window[1]}</answer>" for window in windows]
    prompts = [Prompt(str(row["id"]), row["caption"], target={"spans": [row["timestamp"]]}) for row in annotations]
    scores = {name: 100 * part.mean().item() for name, part in TemporalIou()(texts, prompts).items()}
    assert scores["score"] == pytest.approx(found["miou"]) and scores["parse_failed"] == pytest.approx(56)
    assert scores["r1_at_0.5"] == pytest.approx(found["r1_at_0.5"])


def test_every_written_answer_of_tvgbench_is_read():
    rows = json.loads((DATA / "tvgbench/tvgbench.json").read_text())
    assert len(rows) == 800
    for row in rows:
        start, end = map(float, row["answer"].split("-"))
        assert parse_spans(f"{row['question']} <answer>{row['answer']}</answer>") == [(start, end)]


def test_base_model_iou_of_the_time_r1_rows_is_reproduced():
    """`difficulty` is the base model's IoU in per cent, of the prediction that stands beside it."""
    rows = json.loads((DATA / "tvgbench/timer1_train_2k5_first150.json").read_text())
    texts = ["{} to {}".format(*row["pred"]) for row in rows]
    prompts = [Prompt(row["qid"], row["sentence"], target={"spans": [row["timestamp"]]}) for row in rows]
    iou = TemporalIou()(texts, prompts)["iou"]
    difference = (100 * iou - iou.new_tensor([row["difficulty"] for row in rows])).abs()
    assert difference.max() < 0.01


def test_the_annotation_is_a_perfect_prediction_on_nextgqa():
    location = {vid: row["location"] for vid, row in json.loads((DATA / "nextgqa/gsub_val.json").read_text()).items()}
    windows = [spans for questions in location.values() for spans in questions.values()]
    assert len(windows) == 3358
    found = nextgqa_metrics([spans[-1] for spans in windows], windows, [True] * len(windows))
    assert found["miop"] == found["acc_at_gqa"] == 100 and found["miou"] == pytest.approx(100)
