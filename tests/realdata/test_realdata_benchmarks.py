"""`grpo-mm eval --predictions` prints the published figures, and benchmarks find them in texts; data outside the repository."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.datasets.video.qvhighlights import QVHighlights
from grpo_mm.rewards.benchmarks.moments import Highlights, MomentRetrieval

DATA = Path(os.environ.get("GRPO_MM_TEST_DATA") or Path(__file__).parents[2] / "../shared/data") / "vlm"
pytestmark = [pytest.mark.realdata, pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}")]
VAL = "qvhighlights/highlight_val_release.jsonl"


def printed(*typed: str) -> dict[str, str]:
    """The table that the command prints: name → figure, letter by letter."""
    paths = [str(DATA / word) if (DATA / word).is_file() else word for word in typed]
    done = CliRunner().invoke(app, ["eval", *paths], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(line.split() for line in done.stdout.splitlines())


def test_moment_detr_predictions_print_the_official_figures():
    found = printed(
        "--predictions", "qvhighlights/moment_detr_sample_val_preds.jsonl", "--annotations", VAL, "--as", "qvhighlights"
    )
    moments = [found[f"moments/full/{name}"] for name in ("r1_at_0.5", "r1_at_0.7", "map", "map_at_0.5", "map_at_0.75")]
    assert moments == ["53.94", "34.84", "32.20", "54.96", "31.01"] and found["moments/full/queries"] == "1550"
    official = json.loads((DATA / "qvhighlights/moment_detr_sample_val_preds_metrics.json").read_text())
    for length in ("short", "middle", "long"):
        assert float(found[f"moments/{length}/map"]) == official[length]["MR-mAP"]["average"]
    assert highlights(found) == [("67.77", "66.45"), ("58.09", "64.45"), ("35.65", "55.55")]


def highlights(found: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (found[f"highlights/{level}/map"], found[f"highlights/{level}/hit_at_1"])
        for level in ("fair", "good", "very_good")
    ]


def test_timechat_highlights_print_the_figures_of_their_shared_queries():
    typed = (
        "--predictions",
        "timechat_metrics/qvhighlights_val_pred.json",
        "--annotations",
        VAL,
        "--as",
        "qvhighlights",
    )
    found = printed(*typed, "--answered-only")
    assert highlights(found) == [("28.80", "24.61"), ("22.80", "23.17"), ("13.24", "18.87")]
    assert found["highlights/queries"] == "1463" and not any(name.startswith("moments") for name in found)
    assert printed(*typed)["highlights/queries"] == "1550"


@pytest.mark.parametrize(
    "annotations", ["timechat_metrics/charades_sta_gt_500.json", "charades_sta/charades_test.json"]
)
def test_timechat_spans_print_the_figures_of_their_500_ids(annotations):
    typed = (
        "--predictions",
        "timechat_metrics/charades_sta_pred_500.json",
        "--annotations",
        annotations,
        "--as",
        "charades",
    )
    found = printed(*typed, "--answered-only")
    assert [found[f"r1_at_{m}"] for m in (0.3, 0.5, 0.7)] == ["9.00", "3.40", "1.40"] and found["queries"] == "500"
    paths = [str(DATA / word) if (DATA / word).is_file() else word for word in typed]
    done = CliRunner().invoke(app, ["eval", *paths, "--answered-only", "--json"], catch_exceptions=False)
    assert round(json.loads(done.stdout)["miou"], 4) == 6.2998


def test_the_annotation_of_nextgqa_is_a_perfect_prediction(tmp_path):
    rows = json.loads((DATA / "nextgqa/nextgqa_val_first200.json").read_text())
    predictions = tmp_path / "found.json"
    predictions.write_text(json.dumps({row["id"]: {"answer": row["answer"], "ground": row["glue"]} for row in rows}))
    typed = ("--predictions", str(predictions), "--as", "nextgqa", "--answered-only")
    by_form = [
        printed(*typed, "--annotations", "nextgqa/nextgqa_val_first200.json"),
        printed(*typed, "--annotations", "nextgqa/val_first400.csv", "--annotations", "nextgqa/gsub_val.json"),
    ]
    assert by_form[0] == by_form[1] and by_form[0]["queries"] == "200"
    assert {value for name, value in by_form[0].items() if name not in ("queries", "parse_failed")} == {"100.00"}


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_windows_that_stand_in_texts_give_the_figures_of_the_file():
    prompts = QVHighlights(str(DATA / VAL)).load()
    windows = {
        row["qid"]: row["pred_relevant_windows"] for row in lines("qvhighlights/moment_detr_sample_val_preds.jsonl")
    }
    texts = [
        f"<answer>{[[start, end] for start, end, _ in windows[prompt.target['qid']]]}</answer>" for prompt in prompts
    ]
    found = MomentRetrieval()(texts, prompts)
    figures = [round(100 * found[f"full/{name}"], 2) for name in ("r1_at_0.5", "r1_at_0.7", "map")]
    assert figures == [53.94, 34.84, 32.20]


def test_highlights_that_stand_in_texts_give_the_figures_of_the_file():
    predictions = json.loads((DATA / "timechat_metrics/qvhighlights_val_pred.json").read_text())
    scores = {row["qid"]: (row["pred_saliency_scores"] + [0.0] * 75)[:75] for row in predictions}
    prompts = [prompt for prompt in QVHighlights(str(DATA / VAL)).load() if prompt.target["qid"] in scores]
    times = ", ".join(str(2 * clip) for clip in range(75))
    texts = [
        f"<answer>At {times} seconds; saliency scores {', '.join(map(str, scores[p.target['qid']]))}</answer>"
        for p in prompts
    ]
    found = Highlights()(texts, prompts)
    assert round(100 * found["very_good/map"], 2) == 13.24 and round(100 * found["very_good/hit_at_1"], 2) == 18.87
