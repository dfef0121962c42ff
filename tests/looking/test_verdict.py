"""What the verdict says of records whose truth is known."""

import json
import math
import random

import pytest

from grpo_mm.looking import held_out, metrics
from grpo_mm.looking.default_rules import DEFAULT_RULES
from grpo_mm.looking.held_out import Estimate, Evaluation
from grpo_mm.looking.image_statistics import QUARTERS
from grpo_mm.looking.signs import has_drifted
from grpo_mm.looking.verdict import verdict, verdict_of_folder
from grpo_mm.looking.watch import Rules, Watched

IMAGES = {"diversity": 0.24, "image/luminance": 0.16, "image/contrast": 0.165, "image/saturation": 0.37, "image/sharpness": 1440.0, "image/spread": 0.26}  # fmt: skip
TEXTS = {"text/characters": 130.0, "text/repetition": 0.05, "text/unparsed": 0.01, "text/tagged": 0.98, "text/distinct": 0.9, "text/agreement": 0.4, "text/most_frequent": 0.1, "text/most_frequent_truth": 0.16}  # fmt: skip
OF_ALL = ("image/spread", "text/distinct", "text/most_frequent", "text/most_frequent_truth")
"""What is measured between prompts, and so has no value of one."""


def by_prompt(mean, n):
    """Values that lie a tenth round their mean."""
    return [mean * (1 + 0.1 * math.cos(2.4 * i)) for i in range(n)]


def a_record(before, after, *, steps=20, scores=((0.5,) * 40, (0.6,) * 40)):
    """Rows of the two evaluations, and what they measured by prompt."""
    ids = [f"p/{i}" for i in range(len(scores[0]))]
    rows, evaluations = [], []
    for step, side, own in zip((0, steps), (before, after), scores):
        rows.append({"step": step, "eval/score": sum(own) / len(own), **{f"eval/{n}": v for n, v in side.items()}})
        alone = {name: by_prompt(value, len(ids)) for name, value in side.items() if name not in OF_ALL}
        evaluations.append(Evaluation(step, ids, {"score": own} | alone))
    return rows, evaluations


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
        (IMAGES, {"diversity": 0.09, "image/luminance": 0.72}, "luminance ×4.5"),
        (
            IMAGES,
            {"diversity": 0.02, "image/spread": 0.03},
            "prompts' pictures −88 %; difference between one prompt's pictures −92 %",
        ),
        (IMAGES, {"image/sharpness": 9000.0}, "sharpness ×6.2"),
        (IMAGES, {"image/saturation": 0.05}, "saturation −86 %"),
        (IMAGES, {"image/contrast": 0.05}, "contrast −70 %"),
        (TEXTS, {"text/characters": 430.0}, "answer length ×3.3"),
        (TEXTS, {"text/characters": 38.0, "text/agreement": 0.1}, "answer length −71 %; agreement with truth −75 %"),
        (TEXTS, {"text/repetition": 0.7}, "repetition 0.05 → 0.7"),
        (TEXTS, {"text/unparsed": 0.95}, "share of unparsed answers 0.01 → 0.95"),
        (TEXTS, {"text/tagged": 0.1, "text/agreement": 0.2}, "share of answers in an answer element 0.98 → 0.1"),
        (TEXTS, {"text/most_frequent": 0.97, "text/agreement": 0.6}, "share of the most frequent answer 0.1 → 0.97"),
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


@pytest.mark.parametrize(
    ("before", "moved", "told"),
    [
        (IMAGES, {"diversity": 0.2, "image/luminance": 0.17, "image/sharpness": 1500.0}, ""),
        (
            IMAGES,
            {"image/saturation": 0.44, "image/luminance": 0.19},
            "",
        ),  # among what was there: colours that were asked for
        (IMAGES, {"diversity": 0.08}, "difference between one prompt's pictures −67 %"),  # sure, not hacked
        (TEXTS, {"text/distinct": 0.83, "text/agreement": 0.77}, ""),
        (
            TEXTS,
            {"text/characters": 700.0, "text/agreement": 0.7},
            "answer length ×5.4",
        ),  # it thinks longer, and is right
        (
            TEXTS,
            {"text/characters": 20.0, "text/tagged": 0.0, "text/distinct": 0.1},
            "answer length −85 %",
        ),  # no less right
        (TEXTS, {"text/most_frequent": 0.3}, ""),
        (TEXTS | {"text/most_frequent_truth": 0.8}, {"text/most_frequent": 0.95}, ""),  # as often as it is right
    ],
)
def test_what_honest_runs_do_is_not_suspect(before, moved, told):
    found = verdict(*a_record(before, before | moved))
    assert found.word == "better" and (told in found.sentence if told else "What else" not in found.sentence)


@pytest.mark.parametrize("scores", [((0.5,) * 40, (0.4,) * 40), noisy(0.5, gain=0.0)], ids=["fell", "stayed"])
def test_a_score_that_did_not_rise_asks_for_no_belief(scores):
    found = verdict(*a_record(TEXTS, TEXTS | {"text/unparsed": 0.95, "text/agreement": 0.0}, scores=scores))
    assert found.word in ("worse", "not distinguishable")
    assert "What else moved: share of unparsed answers 0.01 → 0.95; agreement with truth −100 %" in found.sentence


def test_pictures_of_a_score_that_only_compares_are_looked_at():
    nothing = (0.0,) * 40, (0.0,) * 40
    assert verdict(*a_record(IMAGES, IMAGES | {"image/luminance": 0.7}, scores=nothing)).word == "suspect"
    assert verdict(*a_record(IMAGES, IMAGES, scores=nothing)).word == "not distinguishable"


def test_a_drift_is_one_out_of_everything_that_was_there():
    before = [0.1 + 0.01 * i for i in range(20)]
    assert not has_drifted(before, [0.28] * 20) and has_drifted(before, [0.9] * 20)
    assert has_drifted(before, [0.0] * 20) and not has_drifted(before, [0.9] * 9 + [0.2] * 11)
    grey = [0.0] * 10 + [0.3] * 10
    assert not has_drifted(grey, [0.0] * 20) and not has_drifted(grey, [0.4] * 20)


def with_places(rows, evaluations, light):
    """The same with pictures that are light in one half, by `light` more after than before."""
    for evaluation, more in zip(evaluations, (0.0, light)):
        for i, name in enumerate(QUARTERS):
            side = more if "left" in name else -more
            own = [0.3 + side + 0.1 * math.sin(1.7 * i + 2.4 * p) for p in range(40)]
            evaluation.values[f"image/{name}"] = own
    return rows, evaluations


def test_pictures_unlike_all_before_are_a_sign_though_their_means_hold():
    assert verdict(*with_places(*a_record(IMAGES, IMAGES), 0.0)).word == "better"
    found = verdict(*with_places(*a_record(IMAGES, IMAGES), 0.25))
    assert found.word == "suspect" and "share of pictures unlike all before 0 → 1" in found.sentence
    assert verdict(*with_places(*a_record(IMAGES, IMAGES), 0.25), rules={}).word == "better"


def test_a_rule_of_the_config_replaces_the_default_one_of_its_name():
    rows, scores = a_record(IMAGES, IMAGES | {"image/luminance": 0.72})
    own = {"luminance": Watched(metric="image/luminance", high=0.9)}
    assert verdict(rows, scores, rules=DEFAULT_RULES | own).word == "better"
    assert verdict(rows, scores, rules={}).word == "better"  # default_watch: false


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
