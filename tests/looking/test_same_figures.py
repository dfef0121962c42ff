from pathlib import Path

from grpo_mm.looking.same_figures import shown_once
from grpo_mm.tools.console import before_after


def test_one_number_under_several_names_is_one_row():
    before = {
        "score": 0.37,
        "iou/iou": 0.37,
        "iou/mean": 0.37,
        "quality/score": 0.7,
        "quality/sharpness": 0.7,
        "other/score": 0.7,
    }
    after = {
        "score": 0.56,
        "iou/iou": 0.56,
        "iou/mean": 0.56,
        "quality/score": 0.6,
        "quality/sharpness": 0.6,
        "other/score": 0.6,
    }
    assert shown_once(list(after), before, after) == {
        "score": ("score", "iou/mean", "iou/iou"),
        "quality/score": ("quality/score", "quality/sharpness"),
        "other/score": ("other/score",),  # of another reward: equal by chance, or not
    }
    after["quality/sharpness"] += 1e-12
    assert len(shown_once(list(after), before, after)) == 4


def test_what_stands_still_at_its_end_is_not_called_the_same():
    stands = {"a/failed": 0.0, "a/left_out": 0.0, "b/mean": 1.0, "score": 1.0}
    assert list(shown_once(list(stands), stands, stands)) == list(stands)
    assert list(shown_once(list(stands), {}, stands)) == list(stands)
    assert shown_once(["score", "b/mean"], {"score": 0.5, "b/mean": 0.5}, stands) == {"score": ("score", "b/mean")}


def test_shares_of_few_prompts_that_stay_are_equal_by_chance():
    still = {"a/mean": 0.5, "a/unscored_frac": 0.5, "b/x": 1 / 3, "b/y": 1 / 3, "c/x": 0.549382716, "c/y": 0.549382716}
    assert shown_once(list(still), still, still) == {
        "a/mean": ("a/mean",), "a/unscored_frac": ("a/unscored_frac",), "b/x": ("b/x",), "b/y": ("b/y",), "c/x": ("c/x", "c/y"),
    }  # fmt: skip


def test_the_console_shows_it_once(capsys):
    before, after = {"score": 0.25, "iou/mean": 0.25, "iou/iou": 0.25}, {"score": 0.5, "iou/mean": 0.5, "iou/iou": 0.5}
    before_after({"steps": 3, "eval_before": before, "eval_after": after}, Path("runs/x"), Path("report.html"))
    said = capsys.readouterr().out
    assert said.count("+0.2500") == 1 and "score = iou/mean = iou/iou" in said
