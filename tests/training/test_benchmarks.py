"""Benchmarks of whole held-out sets: from texts by hand, in a run on one process and on two, and from files of predictions."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from children import launch
from test_transcripts import TextPrompts, text_run
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.checks import check_benchmarks
from grpo_mm.config.run_config import plain
from grpo_mm.config.typed_yaml import component
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.looking.report.page import read_run, view, write_report
from grpo_mm.processes.distributed import Processes
from grpo_mm.registry import Role
from grpo_mm.rewards.benchmarks.temporal_grounding import BestOfModes, TemporalGrounding
from grpo_mm.rewards.benchmarks.window_metrics import grounding_metrics
from grpo_mm.rewards.text.spans import parse_spans
from grpo_mm.rollout.rows import evaluation_rows
from grpo_mm.tools.prediction_files import score_files
from grpo_mm.training.benchmarks import benchmark_scores
from grpo_mm.types import Prompt


def make(kind: str, **settings):
    return component(Role("benchmark"), {"kind": kind, **settings}, path="evaluation.benchmarks.it")


def asked(*spans, source: str = "", **target) -> list[Prompt]:
    return [
        Prompt(f"clip/{i}", "when", target={"spans": [list(span)], "duration": 20.0, **target}, source=source)
        for i, span in enumerate(spans)
    ]


# ── from texts ──


def test_a_prompt_that_could_not_be_read_counts_as_zero_like_a_text_without_a_span():
    texts = ["It is 3 to 4. <answer>0 to 5</answer>", "no idea", None, "<answer>1 to 2, no, 0 to 10</answer>"]
    prompts = asked(*[(0, 10)] * 4)
    found = make("temporal_grounding")(texts, prompts)
    assert found == {"r1_at_0.3": 0.5, "r1_at_0.5": 0.5, "r1_at_0.7": 0.25, "miou": 0.375, "parse_failed": 0.5}
    assert make("temporal_grounding", strict=True)(texts, prompts)["r1_at_0.5"] == 0.25
    assert make("temporal_grounding", pick="first")(texts, prompts)["miou"] == pytest.approx(0.15)
    swapped = [["<answer>10 to 0</answer>"], asked((0, 10))]
    assert make("temporal_grounding")(*swapped)["miou"] == 0
    assert make("temporal_grounding", swap_reversed=True)(*swapped)["miou"] == 1


def test_the_better_of_two_modes_stands_above_both_and_says_that_it_is_a_bound():
    prompts = [*asked((0, 10), (0, 10), (0, 10), source="direct"), *asked((0, 10), (0, 10), (0, 10), source="think")]
    direct = ["0 to 10", "0 to 2", None]
    think = ["0 to 5", "0 to 8", "12 to 15"]
    found = make("best_of_modes")([*direct, *think], prompts)
    assert {name.partition("/")[0] for name in found} == {"direct", "think", "oracle_upper_bound"}
    miou = [found[f"{mode}/miou"] for mode in ("direct", "think", "oracle_upper_bound")]
    assert miou == pytest.approx([1.2 / 3, 1.3 / 3, 1.8 / 3])
    reached = [found[f"{mode}/r1_at_0.7"] for mode in ("direct", "think", "oracle_upper_bound")]
    assert reached == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert found["direct/parse_failed"] == pytest.approx(1 / 3) and found["oracle_upper_bound/parse_failed"] == 0
    order = [4, 0, 5, 2, 1, 3]  # prompts belong together by id, wherever they stand
    mixed = make("best_of_modes")([[*direct, *think][i] for i in order], [prompts[i] for i in order])
    assert mixed == pytest.approx(found)


def test_samples_of_a_prompt_are_compared_one_by_one_between_modes():
    prompts = [p for source in ("direct", "think") for p in asked((0, 10), source=source) * 2]
    found = make("best_of_modes")(["0 to 2", "0 to 4", "0 to 6", "0 to 1"], prompts)
    assert found["oracle_upper_bound/miou"] == pytest.approx(0.5)  # .6 of the first samples, .4 of the second


def test_modes_that_ask_other_prompts_are_refused():
    with pytest.raises(ConfigError, match="compares sources, found only direct"):
        make("best_of_modes")(["0 to 2"], asked((0, 10), source="direct"))
    prompts = [*asked((0, 10), (0, 10), source="direct"), *asked((0, 10), source="think")]
    with pytest.raises(ConfigError, match="'think' does not ask 1 prompts that another asks, e.g. 'clip/1'"):
        make("best_of_modes")(["0 to 2"] * 3, prompts)


def test_listed_windows_are_ranked_in_their_order():
    prompts = asked((0, 8), (40, 60))
    texts = ["<answer>[[100, 120], [0, 8]]</answer>", "<answer>[[40, 60]]</answer>"]
    found = make("moment_retrieval")(texts, prompts)
    assert found["full/r1_at_0.5"] == 0.5 and found["full/map"] == 0.75  # hit second: 1/2; hit first: 1
    assert found["short/map"] == 0.5 and found["middle/map"] == 1 and found["parse_failed"] == 0
    assert not any(name.startswith("long") or name.endswith("queries") for name in found)  # nothing to average
    assert make("moment_retrieval")([None, texts[1]], prompts)["full/map"] == 0.5


def highlighted(*clips: int) -> list[Prompt]:
    saliency = [[0] * 3 for _ in range(75)]
    for clip in clips:
        saliency[clip] = [4, 4, 2]
    return [Prompt("qvhighlights/1", "what", target={"saliency": saliency, "clips": list(clips), "duration": 150.0})]


def test_named_clips_are_highlights_in_the_order_of_their_scores():
    text = "<answer>The highlights are at 4, 8, 20 seconds, their saliency scores are 2.5, 4.0, 1.0</answer>"
    found = make("highlights")([text], highlighted(4, 10))
    assert found["very_good/hit_at_1"] == 1 and found["parse_failed"] == 0
    # Two of three annotators: of clips 4, 2, 10 by score the first and the third are right, (1 + 2/3) / 2; the other: none.
    assert found["very_good/map"] == pytest.approx(2 / 3 * 5 / 6)
    unscored = make("highlights")(["<answer>at 20 seconds</answer>"], highlighted(10))
    assert unscored["fair/map"] == 1  # above the clips that it does not name
    for text in (None, "nothing", "at 400 seconds, score 3"):
        assert make("highlights")([text], highlighted(4)) == {
            f"{level}/{name}": 0 for level in ("fair", "good", "very_good") for name in ("hit_at_1", "map")
        } | {"parse_failed": 1}


def test_an_answer_is_grounded_if_it_is_right_and_the_span_lies_in_the_video_part():
    prompts = asked(*[(0, 10)] * 5, answer="(C)", answer_type="multiple choice")
    texts = [
        "<answer>(C)</answer><glue>[[0, 5]]</glue>",
        "<answer>(A)</answer><glue>[[0, 5]]</glue>",
        "<answer>(C)</answer><glue>[[8, 18]]</glue>",
        "<answer>(C) 0 to 10</answer>",
        None,
    ]
    found = make("grounded_qa")(texts, prompts)
    assert found["acc_qa"] == 0.6 and found["acc_at_gqa"] == 0.2 and found["parse_failed"] == 0.4
    assert found["miop"] == pytest.approx((1 + 1 + 0.2) / 5) and found["iop_at_0.5"] == 0.4
    assert make("grounded_qa", span_tag=None)(texts[3:4], prompts[:1])["miop"] == 1


def test_benchmarks_ask_only_prompts_with_what_they_compare():
    (spans,), (scores,) = asked((0, 10)), highlighted(1)
    applies = {
        kind: [make(kind).applies_to(prompt) for prompt in (spans, scores, Prompt("text", "hello"))]
        for kind in ("temporal_grounding", "best_of_modes", "moment_retrieval", "highlights", "grounded_qa")
    }
    assert applies == {
        "temporal_grounding": [True, False, False],
        "best_of_modes": [True, False, False],
        "moment_retrieval": [True, False, False],
        "highlights": [False, True, False],
        "grounded_qa": [False, False, False],
    }


# ── in a run ──


@dataclass(frozen=True)
class Grounded(TextPrompts):
    """Prompts whose answers are digits, read as spans; with `shift` another answer to the same question."""

    shift: int = 0

    def load(self) -> list[Prompt]:
        found = super().load()
        texts = [found[(i + self.shift) % len(found)].text for i in range(len(found))]
        return [
            replace(prompt, text=text, target={"spans": [[1.0, 2.0 + i % 3]], "duration": 9.0})
            for i, (prompt, text) in enumerate(zip(found, texts))
        ]


def grounded_run(folder: Path, *, steps: int = 1, **evaluation):
    sources = {"direct": {"use": Grounded(5)}, "think": {"use": Grounded(5, shift=2)}, "other": {"use": TextPrompts(3)}}
    benchmarks = {
        "charades": {"kind": "temporal_grounding", "sources": ["direct"], "thresholds": [0.3, 0.5]},
        "modes": "best_of_modes",
    }
    return text_run(
        folder, name="grounded", steps=steps, eval_prompts=sources, evaluation={"benchmarks": benchmarks} | evaluation
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    config = grounded_run(tmp_path_factory.mktemp("benchmarks"), samples_per_prompt=3)
    train(config)
    return config.folder


def own(found: dict) -> dict[str, float]:
    return {name: value for name, value in found.items() if name.startswith(("charades/", "modes/"))}


def test_a_run_logs_benchmarks_over_its_held_out_rows(run):
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name.removeprefix("eval/"): value for name, value in rows[0].items() if name.startswith("eval/")}
    before = own(summary["eval_before"])
    assert own(logged) == before and len(before) == 4 + 3 * 5
    assert before["charades/parse_failed"] == 0.2  # the video of prompt 1 cannot be read
    assert before["modes/direct/miou"] == before["charades/miou"] > 0
    assert before["modes/oracle_upper_bound/miou"] > max(before["modes/direct/miou"], before["modes/think/miou"])


def test_the_logged_figures_are_those_of_the_texts(run):
    config = grounded_run(run.parents[1])
    policy = config.policy.load(torch.device("cpu"))
    prompts = tuple(replace(prompt, source="direct") for prompt in Grounded(5).load())
    rows = evaluation_rows(prompts, samples=1, rank=0, world=1)
    texts = config.engine.render(policy, rows, seed=0)
    spans = [None if text is None else parse_spans(text)[-1] for text in texts]
    wanted = grounding_metrics(spans, [prompt.target["spans"] for prompt in prompts])
    before = json.loads((run / "summary.json").read_text())["eval_before"]
    assert 100 * before["charades/miou"] == pytest.approx(wanted["miou"])
    assert 100 * before["charades/r1_at_0.3"] == pytest.approx(wanted["r1_at_0.3"])


def test_the_report_and_the_command_show_benchmarks(run):
    shown = {row["key"]: row for row in view(read_run(run))["scores"]}
    after = json.loads((run / "summary.json").read_text())["eval_after"]
    row = shown["modes/oracle_upper_bound/miou"]
    assert row["role"] == "watched" and row["ends"][1] == 100 * after["modes/oracle_upper_bound/miou"]
    assert "modes/oracle_upper_bound/miou" in write_report(run).read_text().replace("<wbr>", "")
    done = CliRunner().invoke(app, ["eval", str(run), "--json"], catch_exceptions=False)
    assert own({name.removeprefix("eval/"): v for name, v in json.loads(done.stdout).items()}) == own(after)
    plainly = CliRunner().invoke(app, ["eval", str(run)], catch_exceptions=False).stdout.splitlines()
    assert f"{'eval/charades/miou':40s} {after['charades/miou']:.4f}" in plainly


def test_two_processes_find_what_one_finds(run, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, pathlib\n"
        "from grpo_mm.entry import train\n"
        "from test_benchmarks import grounded_run\n"
        "train(grounded_run(pathlib.Path(sys.argv[1]), samples_per_prompt=3))\n"
    )
    launch(script, tmp_path)
    one, two = (
        json.loads((folder / "summary.json").read_text())["eval_before"] for folder in (run, tmp_path / "runs/grounded")
    )
    assert own(one) == own(two) and len(own(one)) == 19


def test_a_config_with_benchmarks_is_written_and_read_again(run):
    config = grounded_run(run.parents[1])
    assert plain(config)["evaluation"]["benchmarks"]["charades"]["sources"] == ["direct"]
    assert plain(config)["evaluation"]["benchmarks"]["modes"]["kind"] == "best_of_modes"


@pytest.mark.parametrize(
    "name, benchmark, message",
    [
        (
            "it",
            {"kind": "temporal_grounding", "sources": ["films"]},
            "no source 'films' in eval_prompts; there are: dir",
        ),
        ("ones", "temporal_grounding", "eval/ones/… is taken by a reward"),
        ("direct", "temporal_grounding", "eval/direct/… is taken by a reward, a watch, a source or the core; rename"),
    ],
)
def test_contradictions_are_refused(tmp_path, name, benchmark, message):
    with pytest.raises(ConfigError, match=message):
        check_benchmarks(grounded_run(tmp_path, benchmarks={name: benchmark}))


def test_a_benchmark_needs_held_out_prompts_that_it_applies_to(tmp_path):
    with pytest.raises(ConfigError, match="charades needs held-out prompts"):
        check_benchmarks(replace(grounded_run(tmp_path), eval_prompts={}))
    with pytest.raises(ConfigError, match="benchmarks.qa applies to none of 13 held-out prompts"):
        train(grounded_run(tmp_path, benchmarks={"qa": "grounded_qa"}))


def test_a_run_that_makes_pictures_has_no_texts_to_score(tmp_path):
    rows = evaluation_rows((Prompt("a", "a"),), samples=1, rank=0, world=1)
    with pytest.raises(ConfigError, match="this run makes pictures"):
        benchmark_scores(
            grounded_run(tmp_path).evaluation.benchmarks, torch.zeros(1, 3, 4, 4), rows, Processes(device="cpu")
        )


def test_a_setting_out_of_range_is_refused():
    for kind in (TemporalGrounding, BestOfModes):
        with pytest.raises(ConfigError, match="iou = 'round', pick = 'last'; wanted hull or set"):
            kind(iou="round")


# ── from files ──

QVHIGHLIGHTS = """
{"qid": 1, "query": "a", "duration": 150, "vid": "x_0.0_150.0", "relevant_windows": [[0, 8], [20, 60]], "relevant_clip_ids": [0, 1], "saliency_scores": [[4, 2, 0], [3, 2, 0]]}
{"qid": 2, "query": "b", "duration": 150, "vid": "y_0.0_150.0", "relevant_windows": [[100, 120]], "relevant_clip_ids": [50, 51], "saliency_scores": [[3, 3, 3], [4, 4, 4]]}
"""
MOMENT_DETR = """
{"qid": 1, "query": "a", "vid": "x", "pred_relevant_windows": [[20, 50, 0.2], [0, 8, 0.9]], "pred_saliency_scores": [0.9, 0.1, -0.3]}
{"qid": 2, "query": "b", "vid": "y", "pred_relevant_windows": [[0, 10, 0.9], [100, 120, 0.8]]}
"""
CHARADES = {
    "AO8RW": {"duration": 33.67, "timestamps": [[0.0, 6.9], [10.0, 20.0]], "sentences": ["a person puts a book", "b"]},
    "BX1AA": {"duration": 30.0, "timestamps": [[5.0, 15.0]], "sentences": ["c"]},
}
NEXTGQA = [
    {"id": "100_1", "video": "a/100.mp4", "question": "why", "options": ["(A) rain", "(B) the dog", "(C) c", "(D) d", "(E) e"],
     "answer": "(B)", "glue": [[0, 10]], "duration": 30, "type": "CW"},
    {"id": "100_3", "video": "a/100.mp4", "question": "how", "options": ["(A) a", "(B) b", "(C) c", "(D) d", "(E) e"],
     "answer": "(E)", "glue": [[4, 8], [20, 24]], "duration": 30, "type": "CH"},
]  # fmt: skip


def score(folder: Path, kind: str, annotations, *predictions, **settings) -> dict[str, float]:
    """Writes the values to files, lines as they are, and has them scored."""
    paths = []
    for number, value in enumerate([annotations, *predictions]):
        path = folder / f"{number}{'.jsonl' if isinstance(value, str) else '.json'}"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        paths.append(path)
    return score_files(kind, predictions=paths[1:], annotations=paths[:1], **settings)


def test_moment_detr_lines_give_both_tables(tmp_path):
    found = score(tmp_path, "qvhighlights", QVHIGHLIGHTS, MOMENT_DETR)
    assert found["moments/full/r1_at_0.7"] == 50 and found["moments/full/queries"] == 2  # 30/40 and 0
    assert found["moments/short/map"] == 100 and found["moments/parse_failed"] == 0
    assert found["highlights/very_good/hit_at_1"] == 50 and found["highlights/parse_failed"] == 50
    listed = [json.loads(line) for line in MOMENT_DETR.split("\n")[2:3]]
    some = score(tmp_path, "qvhighlights", QVHIGHLIGHTS, listed, answered_only=True)
    assert some["moments/full/queries"] == 1 and some["moments/full/map"] == 50
    assert not any(name.startswith("highlights/") for name in some)


def test_timechat_predictions_go_by_id_or_by_the_number_of_the_sentence(tmp_path, caplog):
    predictions = {"0": {"timestamp": [[0.0, 6.9], [1, 2]]}, "1": {"timestamp": []}, "2": {"timestamp": [[5.0, 11.0]]}}
    found = score(tmp_path, "charades", CHARADES, predictions)
    assert found["miou"] == pytest.approx(100 * 1.6 / 3) and found["parse_failed"] == pytest.approx(100 / 3)
    own_ids = {"AO8RW/0": [0.0, 6.9], "AO8RW/1": None, "BX1AA/0": "from 5 to 11 seconds"}
    assert score(tmp_path, "charades", CHARADES, own_ids) == found
    listed = [
        {"image_id": "AO8RW.mp4", "caption": "a", "timestamp": [0.0, 6.9], "id": 0},
        {"image_id": "BX1AA.mp4", "caption": "c", "timestamp": [5.0, 15.0], "id": 2},
    ]
    two = {key: predictions[key] for key in ("0", "2")}
    by_id = score(tmp_path, "charades", {"annotations": listed}, two)
    assert by_id["miou"] == pytest.approx(80) == score(tmp_path, "charades", CHARADES, two, answered_only=True)["miou"]
    caplog.clear()
    assert score(tmp_path, "charades", CHARADES, two)["miou"] == pytest.approx(160 / 3)
    assert "1 of 3 queries have no prediction: they count as 0" in caplog.text


def test_activitynet_goes_by_video_and_number(tmp_path):
    found = score(tmp_path, "activitynet", {"v_a": CHARADES["BX1AA"]}, {"v_a/0": [5, 10]})
    assert found["miou"] == 50 and found["r1_at_0.5"] == 100


def test_tvgbench_wants_more_than_the_threshold(tmp_path):
    row = {
        "path": "a/x.mp4",
        "question": "when",
        "answer": "10-20",
        "duration": 30,
        "qsemtype": "s",
        "dataset_name": "d",
    }
    found = score(tmp_path, "tvgbench", [row], {"0": [10, 15]})
    assert found["miou"] == 50 and found["r1_at_0.5"] == 0 and found["r1_at_0.3"] == 100


def test_nextgqa_predictions_in_the_official_files_and_in_one(tmp_path):
    ground = {"100_1": [0, 5], "100_3": [22, 30]}
    letters = {"100_1": {"answer": "(B)", "ground": [0, 5]}, "100_3": {"answer": "A", "ground": [[22, 30]]}}
    found = score(tmp_path, "nextgqa", NEXTGQA, letters)
    assert found["acc_qa"] == found["acc_at_gqa"] == 50 and found["miop"] == pytest.approx((100 + 25) / 2)
    official = {"100_1": {"prediction": 1, "answer": 1}, "100_3": {"prediction": 0, "answer": 4}}
    assert score(tmp_path, "nextgqa", NEXTGQA, ground, official) == found
    named = {key: {"answer": given} for key, given in (("100_1", "the dog"), ("100_3", 4))}
    assert score(tmp_path, "nextgqa", NEXTGQA, ground, named)["acc_qa"] == 100
    alone = score(tmp_path, "nextgqa", NEXTGQA, ground)
    assert alone == {name: value for name, value in found.items() if not name.startswith("acc_")}


WRONG = {
    "a query of another split": ("charades", CHARADES, {"ZZZZZ/0": [1, 2]}, "1 of 1 predictions are for none of 3 annot"),
    "a window of one number": ("charades", CHARADES, {"AO8RW/0": [1]}, r"prediction for AO8RW/0 is \[1\]; wanted \[start, e"),
    "a list for a mapping": ("charades", CHARADES, [[1, 2]], "wanted an object from key to prediction"),
    "a mapping for a list": ("qvhighlights", QVHIGHLIGHTS, {"1": []}, "wanted a list of objects, or one a line"),
    "a query twice": ("qvhighlights", QVHIGHLIGHTS, MOMENT_DETR * 2, "2 predictions stand more than once"),
    "a window without a score": (
        "qvhighlights", QVHIGHLIGHTS, [{"qid": 1, "pred_relevant_windows": [[0, 5]]}], r"wanted qid, and windows \[start",
    ),
    "no JSON": ("qvhighlights", QVHIGHLIGHTS, "{", r"1.jsonl, line 1: not JSON"),
    "a test split": (
        "qvhighlights", '{"qid": 1, "query": "a", "duration": 150, "vid": "x"}', MOMENT_DETR.split("\n")[1],
        "no annotation holds what the predictions are compared with",
    ),
    "another form": ("charade", CHARADES, {}, "Did you mean 'charades'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_in_files_are_told(mistake, tmp_path):
    kind, annotations, predictions, message = WRONG[mistake]
    with pytest.raises(ConfigError, match=message):
        score(tmp_path, kind, annotations, predictions)


def test_the_command_prints_a_table_or_json(tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(CHARADES))
    (tmp_path / "found.json").write_text(json.dumps({"0": [0.0, 6.9], "1": [10, 16], "2": []}))
    typed = ["eval", "--predictions", str(tmp_path / "found.json"), "--annotations", str(tmp_path / "gt.json")]
    done = CliRunner().invoke(app, [*typed, "--as", "charades"], catch_exceptions=False)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["r1_at_0.3", "66.67"], ["r1_at_0.5", "66.67"], ["r1_at_0.7", "33.33"], ["miou", "53.33"],
        ["parse_failed", "33.33"], ["queries", "3"],
    ]  # fmt: skip
    done = CliRunner().invoke(app, [*typed, "--as", "charades", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["miou"] == pytest.approx(160 / 3)


@pytest.mark.parametrize(
    "typed, message",
    [
        ("", "eval needs a run folder or a config, or else --predictions"),
        ("--annotations a.json", "eval needs a run folder or a config"),
        ("--predictions a.json --as charades", "--predictions needs --annotations FILE and --as FORM"),
        ("run --predictions a.json --annotations b.json --as charades", "--predictions asks no model"),
        ("--predictions a.json --annotations b.json --as charades", "b.json: no such file"),
    ],
)
def test_options_that_do_not_go_together_are_told(typed, message):
    done = CliRunner().invoke(app, ["eval", *typed.split()])
    assert message in str(done.exception)
