"""What the verdict says of records whose truth is known."""

import json
import math
import random

import pytest

from grpo_mm.looking import held_out, metrics
from grpo_mm.looking.default_rules import DEFAULT_RULES
from grpo_mm.looking.held_out import Estimate, Evaluation
from grpo_mm.looking.verdict import verdict, verdict_of_folder
from grpo_mm.looking.watch import Rules, Watched

IMAGES = {"diversity": 0.24, "image/luminance": 0.16, "image/contrast": 0.165, "image/saturation": 0.37, "image/sharpness": 1440.0, "image/spread": 0.26}  # fmt: skip
TEXTS = {"text/characters": 130.0, "text/repetition": 0.05, "text/unparsed": 0.01, "text/tagged": 0.98, "text/distinct": 0.9, "text/agreement": 0.4}  # fmt: skip


def a_record(before, after, *, steps=20, scores=((0.5,) * 40, (0.6,) * 40)):
    """Rows of the two evaluations, and their scores by prompt."""
    ids = [f"p/{i}" for i in range(len(scores[0]))]
    rows = [
        {"step": step, "eval/score": sum(own) / len(own), **{f"eval/{name}": value for name, value in side.items()}}
        for step, side, own in zip((0, steps), (before, after), scores)
    ]
    return rows, [Evaluation(step, ids, {"score": own}) for step, own in zip((0, steps), scores)]


def noisy(mean, *, gain=0.0, n=200, seed=0):
    draw = random.Random(seed)
    hard = [draw.gauss(mean, 0.3) for _ in range(n)]
    return hard, [value + draw.gauss(gain, 0.1) for value in hard]


def test_a_gain_beyond_the_error_is_better():
    found = verdict(*a_record(IMAGES, IMAGES, scores=noisy(0.5, gain=0.05)))
    assert found.word == "better" and found.gain.n == 200
    assert found.sentence.startswith("Better: held-out score 0.4") and "200 prompts" in found.sentence


def test_a_gain_within_the_error_is_not_distinguishable():
    before = [0.1 * i for i in range(16)]
    after = [value + (0.12 if i % 2 else -0.08) for i, value in enumerate(before)]
    found = verdict(*a_record(IMAGES, IMAGES, scores=(before, after)))
    assert found.word == "not distinguishable" and "within the error" in found.sentence


def test_a_loss_beyond_the_error_is_worse_and_says_what_else_moved():
    dark = IMAGES | {"image/luminance": 0.03}
    found = verdict(*a_record(IMAGES, dark, scores=noisy(0.5, gain=-0.05)))
    assert found.word == "worse" and "luminance −81 %" in found.sentence


def test_the_error_is_that_of_paired_differences():
    before, after = noisy(0.5, gain=0.05)
    gain = verdict(*a_record(IMAGES, IMAGES, scores=(before, after))).gain
    assert gain.error == pytest.approx(0.1 / math.sqrt(200), rel=0.15)  # 0.03 without pairing
    assert gain.mean == pytest.approx(sum(after) / 200 - sum(before) / 200)


def test_one_prompt_proves_nothing_and_three_hardly_anything():
    assert verdict(*a_record(IMAGES, IMAGES, scores=((0.5,), (0.9,)))).word == "not distinguishable"
    three = verdict(*a_record(IMAGES, IMAGES, scores=((0.530, 0.531, 0.532), (0.531, 0.536, 0.533))))
    assert three.word == "not distinguishable"


def test_equal_gains_of_all_prompts_have_no_error_and_are_better():
    assert verdict(*a_record(IMAGES, IMAGES)).word == "better"


@pytest.mark.parametrize(
    ("before", "moved", "said"),
    [
        (IMAGES, {"diversity": 0.09, "image/luminance": 0.72}, "diversity −62 %; luminance ×4.5"),
        (IMAGES, {"image/sharpness": 9000.0}, "sharpness ×6.2"),
        (IMAGES, {"image/saturation": 0.05}, "saturation −86 %"),
        (IMAGES, {"image/spread": 0.01}, "difference between prompts' pictures −96 %"),
        (TEXTS, {"text/characters": 430.0}, "answer length ×3.3"),
        (TEXTS, {"text/characters": 38.0}, "answer length −71 %"),
        (TEXTS, {"text/repetition": 0.7}, "repetition 0.05 → 0.7"),
        (TEXTS, {"text/unparsed": 0.95}, "share of unparsed answers 0.01 → 0.95"),
        (TEXTS, {"text/tagged": 0.1}, "share of answers in an answer element 0.98 → 0.1"),
        (TEXTS, {"text/distinct": 0.0}, "difference between prompts' answers −100 %"),
        (TEXTS, {"text/agreement": 0.1}, "agreement with truth −75 %"),
    ],
)
def test_a_hack_is_suspect_with_its_figures(before, moved, said):
    found = verdict(*a_record(before, before | moved))
    assert found.word == "suspect" and said in found.sentence
    assert (
        found.sentence.startswith("Suspect: ")
        and "look before you believe the held-out score 0.500 → 0.600" in found.sentence
    )


def test_drifts_of_honest_runs_are_inside():
    """Held-out values of quickstarts before and after; the share of different answers of a group, which falls as a policy
    becomes sure, is no sign."""
    flow = IMAGES | {"diversity": 0.23, "image/luminance": 0.17, "image/sharpness": 1500.0}
    video = TEXTS | {"text/distinct": 0.83, "text/agreement": 0.77}
    rows, scores = a_record(TEXTS, video)
    rows[1:1] = [{"step": s, "diversity/mean": 0.74 - 0.03 * s} for s in range(1, 20)]
    assert verdict(rows, scores).word == "better"
    assert verdict(*a_record(IMAGES, flow)).word == "better"


def test_without_held_out_prompts_the_rollouts_tell():
    rows = [{"step": s, "image/luminance": 0.16 + 0.03 * s, "image/diversity": 0.3} for s in range(1, 31)]
    found = verdict(rows, [])
    assert found.word == "suspect" and "luminance ×" in found.sentence and "no held-out score" in found.sentence
    assert verdict([row | {"image/luminance": 0.16} for row in rows], []).word == "not measured"


def test_a_watched_score_that_fell_by_half_beyond_its_error_is_a_sign():
    rows, scores = a_record(TEXTS, TEXTS)
    for row, evaluation, value in zip(rows, scores, (0.8, 0.3)):
        row["eval/facts/score"] = value
        evaluation.values["facts/score"] = [value] * 40
    assert "watched facts −62 %" in verdict(rows, scores, watched=["facts"]).sentence
    assert verdict(rows, scores).word == "better"


def test_a_rule_of_the_config_that_is_outside_at_the_end_is_a_sign():
    rows, scores = a_record(IMAGES, IMAGES)
    rows[1:1] = [{"step": s, "reward/shape/mean": 0.5 + s / 40} for s in range(1, 20)]
    own = {"too_good": Watched(metric="reward/shape/mean", high=0.9)}
    assert "too good" in verdict(rows, scores, rules=own).sentence
    rows[-2]["reward/shape/mean"] = 0.6  # it came back
    assert verdict(rows, scores, rules=own).word == "better"


def test_default_rules_warn_while_the_run_goes_on():
    rules = Rules(DEFAULT_RULES)
    alarms = [
        rules.observe({"text/unparsed": value}, weights_step=i)[1] for i, value in enumerate((0.0, 0.2, 0.4, 0.5, 0.6))
    ]
    assert [len(one) for one in alarms] == [0, 0, 0, 0, 1]
    assert alarms[-1][0].rule == "unparsed_answers" and alarms[-1][0].action == "warn"


def test_relative_and_shift_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        Watched(metric="text/unparsed", high=2, relative=True, shift=True)


def test_held_out_scores_are_read_back_whole_and_cut_back(tmp_path):
    path = tmp_path / held_out.NAME
    for step in (0, 10, 20):
        held_out.append(path, step=step, ids=["a", "b"], values={"score": [0.1 * step, None]})
    with path.open("a") as file:
        file.write('{"step": 30, "ids": ["a"], "values": {"score": [1, 2]}}\n{"step": 40, "ids"')
    damage = []
    found = held_out.read(path, damage)
    assert [one.step for one in found] == [0, 10, 20] and found[1].values["score"] == [1.0, None]
    assert damage == ["held_out.jsonl: 1 lines hold no scores by prompt; they were skipped"]
    held_out.cut_back(path, step=20, without_eval=True)
    assert [one.step for one in held_out.read(path)] == [0, 10]
    held_out.cut_back(path, step=0, without_eval=True)
    assert not path.exists()


def test_prompts_are_paired_by_id_where_the_held_out_set_changed():
    before = Evaluation(0, ["a", "b"], {"score": [0.1, 0.5]})
    after = Evaluation(5, ["b", "c"], {"score": [0.7, 0.9]})
    assert held_out.paired(before, after, "score") == Estimate(pytest.approx(0.2), None, 1)


def test_t_points_join_the_table_smoothly():
    assert held_out.t_95(1) == 12.706 and held_out.t_95(31) == pytest.approx(2.0395, abs=0.003)
    assert held_out.t_95(200) == pytest.approx(1.9719, abs=0.002)


def test_a_folder_is_read_as_it_is(tmp_path):
    rows, scores = a_record(TEXTS, TEXTS)
    for row in rows:
        metrics.append(tmp_path / "metrics.jsonl", row)
    for one in scores:
        held_out.append(tmp_path / held_out.NAME, step=one.step, ids=one.ids, values=one.values)
    found = verdict_of_folder(tmp_path, rules=DEFAULT_RULES, watched=[]).to_json()
    assert json.loads(json.dumps(found)) == found and found["verdict"] == "better"
    assert found["score"]["n"] == 40 and found["score"]["gain"] == pytest.approx(0.1)
