import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from grpo_mm.errors import UserError
from grpo_mm.looking import held_out, metrics
from grpo_mm.looking.report import texts
from grpo_mm.looking.report.curves import Rule, charts, log_axis, value_axis
from grpo_mm.looking.report.page import _repeated, read_run, view, write_report
from grpo_mm.looking.report.pictures import rollout_strip
from grpo_mm.looking.report.texts import before_and_after_texts
from grpo_mm.looking.report.words import count, duration, moment, number
from grpo_mm.looking.samples import read_sheets, write_eval_sheet, write_rollout_sheet
from grpo_mm.looking.transcripts import Answer, read_transcripts, write_transcript
from grpo_mm.rewards.video.time_line import TimeLine
from grpo_mm.types import Prompt

REPORT = Path(texts.__file__).parent
BEFORE = {"score": 0.487, "shape/mean": 0.487, "shape/all_correct": 0.14, "quality/score": 0.72, "diversity": 0.31}
AFTER = {"score": 0.622, "shape/mean": 0.622, "shape/all_correct": 0.33, "quality/score": 0.70, "diversity": 0.27}
PROMPTS = ["a red circle left of a blue square", "a green square above a cyan circle"]


def a_run(tmp_path, *, steps=12, prompts=PROMPTS):
    """A finished run of two prompts, three samples each."""
    folder = tmp_path / "a_run"
    folder.mkdir(parents=True)
    config = {
        "name": "a_run", "steps": steps, "prompts_per_step": 2, "group_size": 3, "seed": 0, "policy": {"kind": "sd3"},
        "rewards": {"shape": {"use": {"kind": "shape_world"}, "weight": 1.0}}, "watch": {"quality": {}},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "versions.json").write_text(json.dumps({"torch": "2.15.0", "git_commit": "abc123"}))
    metrics.append(folder / "metrics.jsonl", {"step": 0, **{f"eval/{k}": v for k, v in BEFORE.items()}})
    for step in range(1, steps + 1):
        metrics.append(folder / "metrics.jsonl", train_row(step))
    metrics.append(folder / "metrics.jsonl", {"step": steps, **{f"eval/{k}": v for k, v in AFTER.items()}})
    summary = {
        "name": "a_run", "steps": steps, "eval_before": BEFORE, "eval_after": AFTER, "product": "adapter",
        "seconds": {"train": 100.0, "eval": 25.0, "total": 125.0},
        "network_calls": {"rollout_calls": 1_200_000, "train_calls": 10_000}, "reward_calls": {"rewards": 5_000_000},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name, step in (("eval_before", 0), ("eval_after", steps)):
        write_eval_sheet(
            folder / "samples", name=name, step=step, images_MCHW=images[:2], prompts=prompts,
            rewards={"shape": torch.tensor([0.25, 0.75])},
        )  # fmt: skip
    for step in range(1, steps + 1):
        write_rollout_sheet(
            folder / "samples", step=step, images_MCHW=images, prompt_M=torch.arange(6) // 3, prompts=prompts,
            advantage_M=torch.tensor([1.0, float("nan"), -1.0, 0.0, 0.0, 0.0]), rewards={"shape": torch.rand(6)},
        )  # fmt: skip
    return folder


def train_row(step):
    return {
        "step": step, "reward/shape/mean": 0.5 + step / 99, "reward/shape/all_correct": 0.2, "watch/quality/score": 0.7,
        "diversity/mean": 0.3, "advantage/zero_groups_frac": 0.0, "objective/clip_frac": 0.2, "objective/ratio": 1.0,
        "objective/ref_kl": float("nan"), "policy/logprob_gap": 2e-7, "optim/lr": 3e-4, "optim/grad_norm": 1.0,
        "time/rollout_network_seconds": 1.5, "time/train_network_seconds": 0.5, "time/step_seconds": 2.0,
        "calls/rollout_calls": 100, "calls/rewards": 7,
    }  # fmt: skip


def text_of(path):
    """What a reader of the page sees."""
    page = re.sub(r"<(script|style).*?</\1>", " ", path.read_text(), flags=re.S)
    page = re.sub(r"</?(b|span)\b[^>]*>|<wbr>", "", page).replace("&nbsp;", " ")
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_first_sentence_tells_the_result(tmp_path):
    text = text_of(write_report(a_run(tmp_path)))
    assert (
        "Held-out score 0.487 → 0.622 (+0.135) after 12 steps, in 2 min 05 s, with 1.21 million network calls." in text
    )


def test_report_of_a_killed_run_says_so(tmp_path):
    folder = a_run(tmp_path)
    (folder / "summary.json").unlink()
    metrics.cut_back(folder / "metrics.jsonl", step=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "reward/sha')
    text = text_of(write_report(folder))
    assert "still going, or it was stopped, after step 5 of 12" in text
    assert "0.487 before training; 5 steps so far, in 10 s, with 500 network calls" in text
    assert "there is no later evaluation yet" in text  # the sheets of step 12 are leftovers


def test_a_run_between_evaluations_names_the_step_of_its_score(tmp_path):
    folder = a_run(tmp_path)
    (folder / "summary.json").unlink()
    metrics.append(folder / "metrics.jsonl", train_row(13))
    assert "0.487 → 0.622 (+0.135) at step 12; 13 steps so far" in text_of(write_report(folder))


def test_a_run_that_stopped_early_gives_the_reason(tmp_path):
    folder = a_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"steps": 8, "stopped_early": "patience"}))
    assert "Stopped early after step 8 of 12: patience." in text_of(write_report(folder))


@pytest.mark.parametrize("missing", ["metrics.jsonl", "summary.json", "versions.json", "config.yaml", "samples"])
def test_any_piece_may_be_missing(tmp_path, missing):
    folder = a_run(tmp_path)
    (folder / missing).rename(folder / "elsewhere")
    assert "a_run" in text_of(write_report(folder))


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    (folder / "config.yaml").write_text("steps: [")
    text = text_of(write_report(folder))
    for sentence in ("No held-out evaluation", "holds no whole row", "No rollout sheets", "No evaluation pictures"):
        assert sentence in text


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)


def test_prompt_text_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script>'
    folder = a_run(tmp_path, prompts=[evil, "<img src=x onerror=alert(2)>"])
    (folder / "config.yaml").write_text("name: </pre><script>alert(3)</script>\n")
    metrics.append(folder / "metrics.jsonl", {"step": 12, "reward/</script><b>/mean": 1.0})
    page = write_report(folder).read_text()
    assert "<script>alert" not in page and "<img src=x" not in page and "</script><b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_page_needs_nothing_else(tmp_path):
    page = write_report(a_run(tmp_path)).read_text()
    assert not re.search(r"https?://|@import|<link", page)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))


def test_equal_runs_give_equal_pages(tmp_path):
    folder = a_run(tmp_path)
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_primary_score_comes_first_and_watched_scores_last(tmp_path):
    rows = view(read_run(a_run(tmp_path)))["scores"]
    assert [(row["key"], row["role"]) for row in rows] == [
        ("score", "primary"),
        ("shape/mean", "optimised"),
        ("shape/all_correct", "part"),
        ("quality/score", "watched"),
        ("diversity", "watched"),
    ]
    assert rows[3]["change"] == {"text": "−0.020", "sign": "down"}


def test_an_error_below_one_is_not_drawn_as_a_share(tmp_path):
    folder = a_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    for which in ("eval_before", "eval_after"):
        summary[which] |= {"tallyqa/all/rmse": 0.8, "tallyqa/all/accuracy": 0.4}
    (folder / "summary.json").write_text(json.dumps(summary))
    ends = {row["key"]: row["ends"] for row in view(read_run(folder))["scores"]}
    assert ends["tallyqa/all/rmse"] is None and ends["tallyqa/all/accuracy"] == (40, 40)


def test_multipliers_and_scores_of_constraints_have_charts(tmp_path):
    folder = a_run(tmp_path)
    for step in (1, 2, 3):
        found = {"multiplier": 1 + step / 10, "score": 0.5, "applicable": 40.0}
        row = {"step": step} | {f"constraint/consistency/{name}": value for name, value in found.items()}
        metrics.append(folder / "metrics.jsonl", row)
    text = text_of(write_report(folder))
    assert "Multipliers of constraints" in text and "Scores of constraints" in text
    (chart,) = view(read_run(folder))["charts"]("constraint/*/multiplier")
    assert [series["last"] for series in chart["series"]] == ["1.300"]
    assert "Multipliers of constraints" not in text_of(write_report(a_run(tmp_path / "other")))


def test_pictures_are_paired_by_prompt_even_if_it_repeats(tmp_path):
    twice = ["the same", "the same"]
    pairs = view(read_run(a_run(tmp_path, prompts=twice)))["pictures"]["pairs"]
    assert [pair["prompt"] for pair in pairs] == twice
    assert [pair["before"]["score"] for pair in pairs] == ["0.250", "0.750"]
    assert all(pair["before"]["src"] == pair["after"]["src"] for pair in pairs)


def test_rollout_sheets_are_the_first_some_between_and_the_last(tmp_path):
    found = view(read_run(a_run(tmp_path)))
    steps = [sheet["step"] for sheet in found["rollouts"]]
    assert steps[0] == 1 and steps[-1] == 12 and len(steps) == 5
    with_signal, without = found["rollouts"][0]["groups"]
    assert [tile["advantage"] for tile in with_signal["tiles"]] == ["+1.00", "−1.00", None]
    assert with_signal["signal"] and not without["signal"]


def test_a_single_reward_and_the_score_share_one_line():
    rows = [{"step": s, "eval/score": s / 10, "eval/shape/mean": s / 10} for s in range(3)]
    (chart,) = charts(rows, "eval/*")
    assert [series["name"] for series in chart["series"]] == ["score"]


def test_each_reward_has_its_chart_and_unmatched_names_have_none():
    rows = [{"step": 1, "reward/a/mean": 1.0, "reward/b/mean": 30.0, "reward/failed_frac": 0.0}]
    assert [chart["family"] for chart in charts(rows, "reward/*/*", split=True)] == ["a", "b"]
    assert charts(rows, "eval/*") == charts([], "reward/*") == []


def test_series_of_different_scales_do_not_share_an_axis():
    rows = [{"step": s, "watch/q/score": 0.5, "watch/q/part": 0.1 * s, "watch/q/sharpness": 5000.0 + s} for s in (1, 2)]
    assert [(chart["family"], len(chart["series"])) for chart in charts(rows, "watch/*", split=True)] == [
        ("q", 2),
        ("q · sharpness", 1),
    ]


def test_missing_values_leave_no_point():
    rows = [{"step": 1, "a/x": 1.0}, {"step": 2, "a/x": None}, {"step": 4, "a/x": 0.5}]
    (chart,) = charts(rows, "a/*")
    assert chart["data"]["steps"] == [1, 4]
    assert "nan" not in chart["series"][0]["path"]


def test_small_phases_are_summed_into_other():
    rows = [{"step": s, **{f"time/{name}_seconds": 1.0 + i for i, name in enumerate("abcdefgh")}} for s in (1, 2)]
    (chart,) = charts(rows, "time/*", stacked=True)
    assert [series["name"] for series in chart["series"]] == ["h", "g", "f", "e", "d", "other"]
    assert chart["data"]["values"][-1] == ["6.00", "6.00"]  # phases a, b and c


def test_what_a_chart_leaves_out_is_counted():
    (chart,) = charts([{"step": 1, **{f"a/{i}": i / 10 for i in range(9)}}], "a/*")
    assert chart["more"] == 3


def test_zero_has_a_place_on_a_logarithmic_axis():
    axis = log_axis([0.0, 2e-7, 3e-3])
    assert axis.place(0.0) == 0 < axis.place(2e-7) < axis.place(3e-3) < 1000
    assert log_axis([0.0]).place(0.0) == 0 and log_axis([0.0]).ticks == [0.0]


@pytest.mark.parametrize(
    "values", [[1.0], [0.0], [-3.0], [1.0, 1.0 + 2e-16], [0.99998, 1.00002], [0, 1e-9], [-2, 7], [5e9, 6e9]]
)
def test_axis_holds_its_values(values):
    axis = value_axis(values)
    assert all(-1e-6 <= axis.place(v) <= 1000 + 1e-6 for v in values)
    assert len({axis.show(v, tick=True) for v in axis.ticks}) == len(axis.ticks) >= 2


def test_numbers_are_short():
    assert [number(x) for x in (0, 0.61, -12300, 3e-5, 1e-7)] == ["0", "0.61", "−12300", "3×10⁻⁵", "10⁻⁷"]
    assert [duration(x) for x in (4.23, 59.7, 185, 4350)] == ["4.2 s", "1 min 00 s", "3 min 05 s", "1 h 12 min"]
    assert [count(x) for x in (950, 48_200, 1_210_000)] == ["950", "48.2 thousand", "1.21 million"]


WATCH = {
    "light": {"metric": "image/luminance", "low": 0.1, "high": 0.6, "action": "rollback"},
    "sharp": {"metric": "image/sharpness", "high": 2.0, "relative": True},
    "quality": {"use": {"kind": "image_quality"}, "low": 0.5, "action": "stop"},
    "later": {"metric": "eval/quality/sharpness", "low": 0.5, "relative": True},
    "only_logged": {"use": {"kind": "image_quality"}},
}
EVENTS = [
    {"step": 9, "rule": "sharp", "metric": "image/sharpness", "value": 430.0, "band": [None, 400.0], "asked": "warn",
     "action": "warn"},
    {"step": 12, "rule": "light", "metric": "image/luminance", "value": 0.71, "band": [0.1, 0.6], "asked": "rollback",
     "action": "rollback", "weights_of": 10, "factor": 0.5},
]  # fmt: skip


def a_watched_run(tmp_path, *, steps=12):
    """`a_run` with rules: the light drifts out of its band at the end."""
    folder = a_run(tmp_path, steps=steps)
    rows = metrics.read(folder / "metrics.jsonl")
    (folder / "metrics.jsonl").unlink()
    for row in rows:
        if "optim/lr" in row:
            light = 0.4 + 0.31 * (row["step"] / steps) ** 3
            row |= {"image/luminance": light, "watch_rule/light/outside": int(light > 0.6)}
            row |= {"image/sharpness": 200.0 + 25 * row["step"], "image/edge_density": 0.1, "image/saturation": 0.3}
        metrics.append(folder / "metrics.jsonl", row)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"watch": WATCH}))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS) + '{"step": 1')
    return folder


def test_rules_and_what_they_did_are_on_the_page(tmp_path):
    folder = a_watched_run(tmp_path)
    path = write_report(folder)
    text = text_of(path)
    assert "step 9: image/sharpness 430 left its band ≤ 400" in text
    assert (
        "step 12: image/luminance 0.71 left its band 0.1 to 0.6; weights of step 10 put back, learning rate × 0.5"
        in text
    )
    assert "image/luminance light 0.1 to 0.6 0.71 2 of 12 go back" in text
    assert "image/sharpness sharp ≤ 450 500" in text  # 2 × 225
    assert "eval/quality/sharpness later ≥ 0.5 × its first value – 0 of 0 warn" in text
    assert "watch/quality/score quality ≥ 0.5 0.7" in text and "only_logged" not in text.split("How it was run")[0]
    marks = re.findall(r'<i class="mark (\w+)" style="left:([\d.]+)%" title="([^"]*)"', path.read_text())
    assert [(action, float(at)) for action, at, _ in marks if "luminance" in _] == [
        ("rollback", 100.0)
    ] * 2  # and the lr
    assert [at for action, at, words in marks if words.startswith("step 9: image/sharpness")] == ["75.0"]
    (folder / "events.jsonl").unlink()
    assert "No rule had to act." in text_of(write_report(folder))


def test_a_band_lies_where_its_bounds_are():
    rows = [{"step": s, "image/luminance": 0.2 * s, "image/far": 0.1 * s} for s in (1, 2, 3)]
    rules = {"image/luminance": [Rule(band=(None, 0.8)), Rule(marks=[(2, "warn", "step 2")])]}
    (chart,) = charts(rows, "image/luminance", zero=True, rules=rules)
    (band,) = chart["series"][0]["bands"]
    assert chart["y_ticks"][-1]["label"] == "0.8"  # the axis takes the bound in
    assert band == {"area": "M0 1000.0H1000V0.0H0Z", "lines": "M0 0.0H1000"}
    assert chart["marks"] == [{"at": pytest.approx(200 / 3), "action": "warn", "words": "step 2"}]
    (chart,) = charts(rows, "image/far", rules={"image/far": [Rule(band=(0.1, 50.0))]})
    (band,) = chart["series"][0]["bands"]
    assert chart["y_ticks"][-1]["at"] == 100 and band["lines"].count("M") == 1 and "V0.0" in band["area"]


def test_pages_of_runs_without_rules_do_not_speak_of_them(tmp_path):
    assert "Watch rules" not in text_of(write_report(a_run(tmp_path)))


# ── runs that make texts ──

CLIP = Prompt("clip", "When is the <b>cat</b> seen?", target={"spans": [[2.0, 5.0]], "duration": 10.0})
LONG = "<think>" + "a word " * 60 + "</think><answer>2 to 5</answer>"
SCENE = Prompt("scene", "Where is the cat?")


class Boxes:
    """The numbers of a text are one box."""

    def truth(self, prompt):
        return {"size": [84, 42], "boxes": [[4, 10, 20, 26]], "names": ["cat"]}

    def __call__(self, prompt, text):
        return {"boxes": [[float(n) for n in re.findall(r"\d+", text)]]}


def a_text_run(tmp_path, *, prompt=CLIP, texts=("9 to 4", LONG), sketch=None, frames=4):
    """`a_run` with answers in place of pictures: one held-out question, one group of five."""
    folder = a_run(tmp_path)
    for path in (folder / "samples").iterdir():
        path.unlink()
    shows = {
        "sketch": sketch or TimeLine(),
        "illustrate": lambda _: torch.full((frames, 3, 8, 16), 99, dtype=torch.uint8),
    }
    for (name, step), text in zip((("eval_before", 0), ("eval_after", 12)), texts):
        answer = Answer(text, {"iou": 0.25, "format": 1.0})
        write_transcript(folder / "samples", name=name, kind="eval", step=step, asked=[(prompt, [answer])], **shows)
    group = [
        Answer("<answer>2 to 5</answer>", {"iou": 1.0, "format": 1.0}, 1.5),
        Answer("<answer>20 to 30</answer>", {"iou": 0.0, "format": 1.0}, -0.5),
        Answer("<answer>20 to 30</answer>", {"iou": 0.0, "format": 1.0}, -0.5),
        Answer("<answer>3 to 12</answer>", {"iou": 0.2, "format": 1.0}, -0.25, is_demo=True),
        Answer(None),
    ]
    for step in (1, 12):
        write_transcript(
            folder / "samples", name=f"step_{step:06d}", kind="rollout", step=step, asked=[(prompt, group)], **shows
        )
    return folder


def test_answers_before_and_after_stand_beside_each_other(tmp_path):
    path = write_report(a_text_run(tmp_path))
    text = text_of(path)
    assert "The same questions before training and after step 12, the largest change first" in text
    assert "0 10 s before 0.250 9 to 4 iou 0.250 format 1.000 after 0.250" in text
    assert "<answer>" not in text and "&lt;answer&gt;2 to 5&lt;/answer&gt;" in text
    assert "When is the &lt;b&gt;cat&lt;/b&gt; seen?" in text and "<b>cat" not in path.read_text()
    assert "evaluation pictures" not in text and "rollout sheets" not in text
    assert "fixed noise" not in text


def test_spans_lie_where_they_are_on_the_clip(tmp_path):
    (question,) = view(read_run(a_text_run(tmp_path)))["talk"]["questions"]
    assert question["extent"] == "10 s"
    assert question["true_spans"] == [{"left": 20, "width": 30, "odd": False, "words": "2 to 5 s"}]
    before, after = question["answers"]
    assert before["spans"] == [{"left": 40, "width": 50, "odd": True, "words": "9 to 4 s"}]  # reversed
    assert after["spans"] == question["true_spans"]
    assert question["strip"].startswith("data:image/png;base64,") and question["shot"] is None


def test_a_group_is_told_with_equal_answers_once(tmp_path):
    sheets = view(read_run(a_text_run(tmp_path)))["text_rollouts"]
    assert [sheet["step"] for sheet in sheets] == [1, 12]
    (group,) = sheets[0]["groups"]
    assert (group["size"], group["kept"], group["signal"]) == (5, 5, True)
    answers = group["answers"]
    assert [a["advantage"] for a in answers] == ["+1.50", "−0.25", "−0.50", None]
    assert [a["label"] for a in answers] == ["", "", "× 2", ""]
    assert [a["bar"] for a in answers] == [100, pytest.approx(50 / 3), pytest.approx(100 / 3), 0]
    assert [a["is_demo"] for a in answers] == [False, True, False, False]
    overrun, outside = answers[1]["spans"][0], answers[2]["spans"][0]
    assert (overrun["left"], overrun["width"], overrun["odd"]) == (30, 70, False)
    assert (outside["left"], outside["width"], outside["odd"]) == (100, 0, True)
    text = text_of(write_report(tmp_path / "a_run"))
    assert "Not asked; the log says why." in text and "demonstration" in text and "left out" in text


def test_a_long_answer_is_folded_to_whole_words_around_its_answer(tmp_path):
    path = write_report(a_text_run(tmp_path))
    (fold,) = re.findall(r'<details class="fold"><summary>(.*?)</summary><div>(.*?)</div>', path.read_text(), re.S)
    short, whole = (re.sub(r"<[^>]*>", "", part).replace("&lt;", "<").replace("&gt;", ">") for part in fold)
    assert whole == LONG
    head, _, tail = short.partition(" … ")
    assert LONG.startswith(head) and LONG.endswith(tail) and len(head) <= 70 and len(tail) <= 160
    assert LONG[len(head)] == " " and LONG[-len(tail) - 1] == " "
    assert '<span class="said">2 to 5</span>' in fold[0]


def test_boxes_are_drawn_upon_the_picture_which_stands_in_the_page_once(tmp_path):
    texts = ("at 30 20 10 5", "at 4 10 20 26")
    folder = a_text_run(tmp_path, prompt=SCENE, texts=texts, sketch=Boxes(), frames=1)
    for path in (folder / "samples").glob("step_*"):
        path.unlink()
    (question,) = view(read_run(folder))["talk"]["questions"]
    assert question["frame"] == (84, 42) and question["extent"] is None and question["strip"] is None
    assert question["answers"][0]["boxes"] == [{"x": 10, "y": 5, "width": 20, "height": 15, "name": ""}]
    page = write_report(folder).read_text()
    assert page.count("data:image/png;base64,") == 1 and page.count('class="shot"') == 2
    assert (
        len(re.findall(r'<rect x="4.0" y="10.0" width="16.0" height="16.0" class="true"><title>cat</title>', page)) == 2
    )
    assert page.count('viewBox="0 0 84.0 42.0"') == 2


def test_texts_need_neither_spans_nor_pictures(tmp_path):
    folder = a_text_run(tmp_path, prompt=SCENE, texts=("here", ""))
    for path in (folder / "samples/media").iterdir():
        path.unlink()
    text = text_of(write_report(folder))
    assert "before here" in text and "An empty answer." in text


def test_texts_of_a_killed_run_leave_out_what_came_after(tmp_path):
    folder = a_text_run(tmp_path)
    (folder / "summary.json").unlink()
    metrics.cut_back(folder / "metrics.jsonl", step=5)
    text = text_of(write_report(folder))
    assert "Answers from before training; there is no later evaluation yet." in text
    assert "1 of 1 transcripts" in text


def test_a_page_of_texts_needs_nothing_else(tmp_path):
    page = write_report(a_text_run(tmp_path)).read_text()
    assert not re.search(r"https?://|@import|<link", page)
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src="|url\()([^")]*)', page))


def test_moments_of_long_videos_are_clock_times():
    assert [moment(x) for x in (9.0, 47.46, 119, 725, 3723)] == ["9 s", "47.5 s", "119 s", "12:05", "1:02:03"]


def with_scores_by_prompt(folder, before, after):
    for step, values in ((0, before), (12, after)):
        held_out.append(folder / held_out.NAME, step=step, ids=[f"p{i}" for i in range(len(values))], values={"score": values, "shape/mean": values})  # fmt: skip
    return folder


def test_the_head_says_the_verdict_and_every_number_has_its_error(tmp_path):
    before = [0.3 + 0.01 * i for i in range(32)]
    folder = with_scores_by_prompt(a_run(tmp_path), before, [v + 0.12 + 0.001 * i for i, v in enumerate(before)])
    page = write_report(folder)
    assert '<p class="verdict better">Better: held-out score 0.487 → 0.622 (+0.' in page.read_text()
    (score, *_) = view(read_run(folder))["scores"]
    assert score["n"] == 32 and score["before_error"] == "± 0.017" and score["error"] == "± 0.002"
    assert score["change"]["sign"] == "up" and '<b class="up">(+0.135 ± 0.002)</b> on 32' in page.read_text()


def test_a_change_within_its_error_is_grey(tmp_path):
    before = [0.4] * 8
    folder = with_scores_by_prompt(a_run(tmp_path), before, [0.1, 0.9, 0.2, 0.8, 0.5, 0.7, 0.1, 0.6])
    page = write_report(folder).read_text()
    assert '<p class="verdict not">Not distinguishable' in page and '<b class="same">(+0.135' in page


def test_scores_are_drawn_from_zero(tmp_path):
    rows = [{"step": s, "eval/score": 0.530 + 0.001 * s} for s in range(4)]
    (chart,) = charts(rows, "eval/score", zero=True)
    assert chart["y_ticks"][0]["label"] == "0.0"
    assert '"eval/score", "eval/*/mean", "eval/*/all_correct", zero=true' in (REPORT / "report.html.j2").read_text()


def test_samples_are_sorted_by_change_and_say_what_is_true(tmp_path):
    folder = tmp_path / "samples"
    truths = {"a": "red", "b": "left", "c": "two"}
    for name, step, values in (("eval_before", 0, (0.5, 0.9, 0.2)), ("eval_after", 5, (0.5, 0.1, 0.4))):
        write_transcript(
            folder, name=name, kind="eval", step=step,
            asked=[(Prompt(key, f"{key}?", target={"answer": truth}), [Answer("x", {"r": v})]) for (key, truth), v in zip(truths.items(), values)],
        )  # fmt: skip
    assert [json.loads(line)["right"] for line in (folder / "eval_after.jsonl").read_text().splitlines()] == [
        "red",
        "left",
        "two",
    ]
    talk = before_and_after_texts(read_transcripts(folder))
    assert [(q["right"], q["change"]["text"]) for q in talk["questions"]] == [
        ("left", "−0.800"),
        ("two", "+0.200"),
        ("red", "0.000"),
    ]
    assert talk["changes"] == "1 better, 1 worse, 1 unchanged"


def test_clips_play_within_the_bytes_that_a_page_has(tmp_path, monkeypatch):
    noise = torch.randint(0, 256, (24, 3, 30, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name, step in (("eval_before", 0), ("eval_after", 5)):
        write_transcript(
            tmp_path, name=name, kind="eval", step=step, play=lambda prompt: noise + int(prompt.id),
            asked=[(Prompt(str(i), "when?"), [Answer("now", {"r": 0.1 * i * step})]) for i in range(3)],
        )  # fmt: skip
    found = read_transcripts(tmp_path)
    monkeypatch.setattr(texts, "CLIP_BYTES", 10**7)
    reels = [q["reel"] for q in before_and_after_texts(found)["questions"]]
    assert [reel["frames"] for reel in reels] == [24] * 3 and reels[0]["lasts"] == 8.0
    monkeypatch.setattr(texts, "CLIP_BYTES", len(reels[0]["src"]) + 10)
    assert [bool(q["reel"]) for q in before_and_after_texts(found)["questions"]] == [True, False, False]


def test_a_tree_says_what_settled_each_advantage(tmp_path):
    one = {"depth": 2, "advantage": 0.31, "compared": 3, "value": 0.6, "low": 0.2, "high": 0.8}
    write_rollout_sheet(
        tmp_path, step=3, images_MCHW=torch.zeros(2, 3, 8, 8, dtype=torch.uint8), prompt_M=torch.tensor([0, 0]),
        prompts=["a sign"], truths=["HELLO"], advantage_M=torch.tensor([0.3, -0.3]), rewards={"r": torch.tensor([0.530, 0.533])},
        settled_M=[[one], []],
    )  # fmt: skip
    (group,) = rollout_strip(read_sheets(tmp_path)[0])["groups"]
    assert group["tiles"][0]["settled"] == ["depth 2: +0.31, one of 3 compared, 0.600 against 0.200 to 0.800"]
    assert group["truth"] == "HELLO" and group["spread"] == "r 0.530 to 0.533"


def test_watched_statistics_of_pictures_have_one_chart():
    columns = {
        name: [(1, value)]
        for name, value in (
            ("image/sharpness", 9.0), ("watch/quality/sharpness", 9.0), ("watch/quality/score", 9.0), ("eval/quality/score", 8.0),
            ("watch/same/score", 9.0), ("watch/aesthetic/score", 5.0), ("eval/aesthetic/score", 5.0), ("reward/quality/mean", 9.0),
        )
    }  # fmt: skip
    watch = {
        "quality": {"use": {"kind": "image_quality"}},
        "same": {"use": "my:sharpness"},
        "aesthetic": {"use": "aesthetic"},
    }
    doubled = ["watch/quality/sharpness", "watch/quality/score", "eval/quality/score", "watch/same/score"]
    assert _repeated({"watch": watch}, columns, {}) == doubled
    assert _repeated({"watch": watch}, columns, {"watch/quality/score": []}) == [
        n for n in doubled if n != "watch/quality/score"
    ]
    assert _repeated({}, columns, {}) == [n for n in doubled if n.startswith("watch/")]
    assert _repeated({"watch": watch}, {n: c for n, c in columns.items() if n != "image/sharpness"}, {}) == []
