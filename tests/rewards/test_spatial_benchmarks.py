"""Benchmarks of spatial questions by hand: how answers are read, what counts as wrong, and which mean is taken of what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from linear_time import no_more_than
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.typed_yaml import component
from grpo_mm.datasets.spatial.cv_bench import CvBench as CvBenchRows
from grpo_mm.datasets.spatial.sat import Sat as SatRows
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rewards.answers.choices import read_count, read_letter, read_truth
from grpo_mm.rewards.benchmarks.referring import ReferringBoxes
from grpo_mm.rewards.benchmarks.spatial import Blink, CvBench, Mmvp, Sat, Vsr, pair_accuracy
from grpo_mm.rewards.benchmarks.tallyqa import TallyQa, counting_metrics
from grpo_mm.rewards.benchmarks.vsi_bench import VsiBench, vsi_bench_metrics
from grpo_mm.types import Prompt


def asked(benchmark: str, *targets: dict, **shared) -> list[Prompt]:
    return [
        Prompt(f"{benchmark}/{i}", "?", target={"benchmark": benchmark} | shared | target)
        for i, target in enumerate(targets)
    ]


def said(*answers: str | None) -> list[str | None]:
    return [None if answer is None else f"<think>(D) 7 no</think><answer>{answer}</answer>" for answer in answers]


# ── reading ──


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(b)", "B"), (" b. ", "B"), ("B) right", "B"), ("(B) no\n\nThe cat sits (A) left of it.", "B"),
        ("right", "B"), ("Right.", "B"), ("The best choice is:\n\n(A) left", "A"), ("So (B), yes (B).", "B"),
        ("The answer is B", "B"), ("the answer is: A.", "A"),
        ("", None), ("A dog", None), ("either (A) or (B)", None), ("E", None), ("(E)", None), ("left or right", None),
        ("the answer is a mystery", None), ("The answer is A good one", None), ("both cats(b)", None),
    ],
)  # fmt: skip
def test_a_letter_is_read_or_it_is_none(text, letter):
    assert read_letter(text, ["left", "right", "up"]) == letter


def test_options_that_look_the_same_choose_nothing():
    assert read_letter("left", ["left", "Left."]) is None and read_letter("c", 2) is None and read_letter("b", 2) == "B"


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("yes", True), ("No.", False), ("**True**", True), ("False, it is not.", False), ("It stands there.\nSo: yes", None),
        ("It stands there.\nyes", True), ("That is not true", None), ("nobody", None), ("", None), ("\n\n", None), ("3 yes", None),
    ],
)  # fmt: skip
def test_yes_and_no_are_read_where_they_begin(text, truth):
    assert read_truth(text) is truth


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4", 4), ("There are 3 cups.", 3), ("three", 3), ("Twelve cups", 12), ("3 cups; one is red", 3), ("none", 0),
        ("2 red and 3 blue", None), ("2, so 2", 2), ("one or two", None), ("many", None), ("", None), ("-1", -1), ("x3", None),
        ("2.5", 2.5), ("phone", None),
    ],
)  # fmt: skip
def test_one_number_is_a_count_and_two_are_none(text, count):
    assert read_count(text) == count


@pytest.mark.parametrize("piece", ["(A", "(A) ", "answer is ", "1,", "one ", "1.", "( ", "\n", "٣", "answer is  A"])
def test_hostile_texts_take_linear_time(piece):
    text = piece * (400_000 // len(piece))
    with no_more_than(10):
        for read in (lambda t: read_letter(t, ["x", "y"]), read_truth, read_count):
            read(text)


# ── choices ──


def test_nothing_that_could_not_be_read_counts_as_a():
    prompts = asked("sat", *[{"answer": "(A)"}] * 5, choices=["x", "y"], question_type="goal_aim")
    found = Sat()([*said("(A)", "dunno", "(A) or (B)", ""), None], prompts)
    assert found["accuracy"] == 0.2 and found["parse_failed"] == 0.8 and found["type/goal_aim"] == 0.2


def test_cv_bench_weighs_its_sources_not_its_questions():
    plane = {"type": "2D", "answer": "(B)", "choices": ["x", "y"], "task": "Count"}
    ade, coco = plane | {"image_source": "ADE20K"}, plane | {"image_source": "COCO", "task": "Relation"}
    space = plane | {"type": "3D", "image_source": "Omni3D", "task": "Depth"}
    prompts = asked("cv_bench", ade, ade, ade, coco, space, space)
    found = CvBench()(said("B", "B", "B", "A", "B", "B"), prompts)
    assert found["2d"] == 0.5 and found["2d/ADE20K"] == 1 and found["2d/COCO"] == 0  # 3 of 4 questions
    assert found["3d"] == 1 and found["total"] == 0.75
    assert (found["task/Count"], found["task/Relation"], found["task/Depth"]) == (1, 0, 1)
    assert "total" not in CvBench()(said("B"), prompts[:1])


def test_a_pair_of_mmvp_is_right_if_both_are():
    prompts = asked("mmvp", *[{"answer": a, "pair": p} for a, p in zip(("(a)", "(b)") * 2, "1122")], choices=["x", "y"])
    assert Mmvp()(said("A", "B", "A", "A"), prompts) == {
        "pair_accuracy": 0.5, "single_accuracy": 0.75, "parse_failed": 0,
    }  # fmt: skip
    assert Mmvp()(said("A", "A", "B", "B"), prompts)["pair_accuracy"] == 0


def test_samples_of_a_pair_are_paired_one_by_one():
    one, two = asked("mmvp", {"answer": "(a)"}, {"answer": "(b)"}, choices=["x", "y"], pair="1")
    found = Mmvp()(said("A", "B", "B", "A"), [one, one, two, two])
    assert found["pair_accuracy"] == 0.5 and found["single_accuracy"] == 0.5


def test_half_a_pair_is_an_error():
    with pytest.raises(ConfigError, match="1 pairs have not two questions, e.g. '2' with 1"):
        pair_accuracy([True, True, True], ["1", "1", "2"])


def test_a_model_that_always_takes_one_place_is_right_half_the_time_and_never_both_ways(tmp_path):
    path = tmp_path / "real.jsonl"
    row = {"image_bytes": ["a.png"], "question": "which?", "answers": ["left", "right"], "question_type": "goal_aim"}
    path.write_text("\n".join(json.dumps(row | {"correct_answer": right}) for right in ("left", "right", "left")))
    prompts = SatRows(str(path), order="circular").load()
    assert len(prompts) == 6
    stuck = Sat()(said(*"AAAAAA"), prompts)
    assert stuck["accuracy"] == 0.5 and stuck["both_orders"] == 0
    knows = Sat()([prompt.demo for prompt in prompts], prompts)
    assert knows["accuracy"] == knows["both_orders"] == 1
    assert "both_orders" not in Sat()(said("A"), SatRows(str(path), limit=1).load())


def test_blink_weighs_its_sub_tasks():
    prompts = asked(
        "blink", *[{"task": task} for task in ("Counting",) * 3 + ("Jigsaw",)], answer="(A)", choices=["x", "y"]
    )
    found = Blink()(said("A", "A", "A", "B"), prompts)
    assert found["subtask_mean"] == 0.5 and found["micro"] == 0.75 and found["subtask/Counting"] == 1


def test_statements_of_vsr_are_true_or_false():
    prompts = asked("vsr", *[{"answer": a, "task": t} for a, t in zip(("yes", "no", "no"), ("on", "on", "under"))])
    found = Vsr()(said("Yes.", "false", "maybe"), prompts)
    assert found == {"accuracy": pytest.approx(2 / 3), "relation_mean": 0.5, "parse_failed": pytest.approx(1 / 3)}


def test_without_the_element_the_text_is_the_answer():
    prompts = asked("blink", {"task": "x", "answer": "(B)", "choices": ["x", "y"]})
    assert Blink()(["B"], prompts)["micro"] == 1 and Blink()(["<answer>A</answer> (B)"], prompts)["micro"] == 0
    assert Blink(answer_tag="final")(["<answer>A</answer> so <final>B</final>"], prompts)["micro"] == 1


# ── VSI-Bench ──


def number(answer: str, kind: str = "object_counting") -> dict:
    return {"answer": answer, "question_type": kind}


def test_mean_relative_accuracy_of_the_official_scorer_and_with_a_tolerance():
    pairs = [("9", 0.9), ("10", 1), ("5", 0.1), ("8", 0.6)]
    for text, wanted in pairs:
        assert VsiBench()([text], asked("vsi_bench", number("10")))["overall"] == pytest.approx(wanted)
    assert VsiBench(official=False)(["8"], asked("vsi_bench", number("10")))["overall"] == pytest.approx(0.7)
    for text in ("ten", "inf", "nan", "", None, "-"):
        found = VsiBench()([text], asked("vsi_bench", number("10")))
        assert found["overall"] == 0 and found["parse_failed"] == 1


def test_levels_of_direction_are_one_task():
    kinds = [f"object_rel_direction_{level}" for level in ("easy", "easy", "easy", "medium", "hard")] + [
        "route_planning"
    ]
    found = vsi_bench_metrics([1, 1, 1, 0, 0.5, 0], kinds)
    assert (
        found["object_rel_direction"] == 0.5 and found["overall"] == 0.25 and found["object_rel_direction_hard"] == 0.5
    )


def test_the_official_reading_takes_the_first_word_and_the_other_looks_for_it():
    choice = {"answer": "B", "question_type": "route_planning", "choices": ["x", "y"]}
    texts = ["b.", "B the bed", "(B)", "It is (B)", "3"]
    prompts = asked("vsi_bench", *[choice] * 5)
    assert VsiBench()(texts, prompts)["route_planning"] == pytest.approx(0.4)
    assert VsiBench()(texts, prompts)["parse_failed"] == pytest.approx(0.6)
    assert VsiBench(official=False)(texts, prompts)["route_planning"] == pytest.approx(0.6)
    metres = asked("vsi_bench", number("3", "room_size_estimation"))
    assert VsiBench()(["about 3 m"], metres)["overall"] == 0 and VsiBench()(["3 m"], metres)["overall"] == 1
    assert VsiBench(official=False)(["about 3 m"], metres)["overall"] == 1


def test_a_partial_vsi_bench_says_so():
    found = VsiBench()(
        ["1", "B"],
        asked("vsi_bench", number("1"), {"answer": "B", "question_type": "route_planning", "choices": ["x", "y"]}),
    )
    assert found["tasks_share"] == 0.25 and found["overall"] == 1


# ── counts ──


def test_counts_are_right_or_wrong_and_off_by_so_much():
    prompts = asked(
        "tallyqa", *[{"answer": str(n), "task": t} for n, t in ((2, "simple"), (3, "simple"), (5, "complex"))]
    )
    found = TallyQa()(said("2", "5", "seven"), prompts)
    assert found["simple/accuracy"] == 0.5 and found["simple/rmse"] == pytest.approx(np.sqrt(2))
    assert found["complex/accuracy"] == 0 and found["complex/rmse"] == 2
    assert found["all/rmse"] == pytest.approx(np.sqrt(8 / 3)) and not any(name.endswith("queries") for name in found)
    untold = asked("tallyqa", {"answer": "2"})
    assert set(TallyQa()(said("2"), untold)) == {"all/accuracy", "all/rmse", "all/parse_failed"}


def test_an_unread_count_is_as_far_off_as_can_be_and_an_absurd_one_no_farther():
    assert counting_metrics([None], [4])["rmse"] == 11 == counting_metrics([1e9], [4])["rmse"]
    assert counting_metrics([None], [9])["rmse"] == 9 == counting_metrics([-5], [9])["rmse"]
    assert counting_metrics([None, 0], [0, 0])["accuracy"] == 50
    with pytest.raises(ValueError, match="1 counts for 0 questions"):
        counting_metrics([1], [])


# ── boxes ──


def test_a_box_is_right_from_half_of_its_union_on():
    prompts = asked("refcoco", *[{"boxes": [[0, 0, 10, 10]], "width": 100, "height": 100}] * 4)
    texts = said("[0, 0, 10, 5]", '{"bbox_2d": [0, 0, 10, 10], "label": "cup"}', "[0, 0, 10, 4]", "left")
    found = ReferringBoxes()(texts, prompts)
    assert found == {"acc_at_0.5": 0.5, "miou": pytest.approx(1.9 / 4), "parse_failed": 0.25}
    assert ReferringBoxes(strict=True)(texts, prompts)["acc_at_0.5"] == 0.25
    assert ReferringBoxes(inclusive=True)(texts[:1], prompts[:1])["miou"] == pytest.approx(66 / 121)
    several = ReferringBoxes(thresholds=(0.3, 0.9))(texts, prompts)
    assert (several["acc_at_0.3"], several["acc_at_0.9"]) == (0.75, 0.25)


def test_boxes_in_thousandths_and_of_a_resized_picture_are_brought_to_the_original_pixels():
    prompts = asked("refcoco", {"boxes": [[0, 0, 50, 40]], "width": 100, "height": 80})
    assert ReferringBoxes(coordinates="thousand")(said("[0, 0, 500, 500]"), prompts)["miou"] == 1
    resized = asked("refcoco", prompts[0].target | {"resized_width": 200, "resized_height": 160})
    assert ReferringBoxes()(said("[0, 0, 100, 80]"), resized)["miou"] == 1
    two = said("[0, 0, 5, 5] [0, 0, 50, 40]")
    assert ReferringBoxes(pick="last")(two, prompts)["miou"] == 1 > ReferringBoxes()(two, prompts)["miou"]
    with pytest.raises(ConfigError, match="pick = 'best'; wanted first or last"):
        ReferringBoxes(pick="best")


# ── which prompts, and files ──


def test_every_benchmark_asks_its_own_questions_only(tmp_path):
    kinds = {"cv_bench": "cv_bench", "blink": "blink", "mmvp": "mmvp", "sat": "sat", "vsr": "vsr", "vsi_bench": "vsi_bench",
             "tallyqa": "tallyqa", "referring": "refcoco"}  # fmt: skip
    prompts = asked("", *[{"benchmark": name, "answer": "(A)", "boxes": [[0, 0, 1, 1]]} for name in kinds.values()])
    for kind, name in kinds.items():
        made = component(Role("benchmark"), {"kind": kind, "sources": ["held"]}, path="evaluation.benchmarks.it")
        assert [prompt.target["benchmark"] for prompt in prompts if made.applies_to(prompt)] == [name]
        assert not made.applies_to(Prompt("text", "hello")) and tuple(made.sources) == ("held",)
    assert not Blink().applies_to(asked("blink", {"task": "Jigsaw"})[0])  # its answer is hidden


def test_the_demonstrations_of_a_reader_score_in_full(tmp_path):
    rows = [
        {"idx": i, "type": kind, "task": "t", "question": "q?", "choices": ["1", "2"], "answer": "(B)", "filename": "x", "source": s}
        for i, (kind, s) in enumerate((("2D", "ADE20K"), ("2D", "COCO"), ("3D", "Omni3D")))
    ]  # fmt: skip
    (tmp_path / "cv.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = CvBenchRows(str(tmp_path / "cv.jsonl")).load()
    assert all(CvBench().applies_to(prompt) for prompt in prompts)
    assert CvBench()([prompt.demo for prompt in prompts], prompts)["total"] == 1


def outputs(*rows: tuple) -> dict:
    keys = ("idx", "answer", "full_prediction", "prediction")
    return {
        "val": [dict(zip(keys, row)) for row in rows],
        "test": [dict(zip(keys, ("test_Jigsaw_1", "hidden", "(A)", "(A)")))],
    }


def scored(folder: Path, annotations, *predictions, extra: tuple[str, ...] = ()) -> dict[str, str]:
    paths = []
    for number, value in enumerate([annotations, *predictions]):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(json.dumps(value))
    typed = [word for path in paths[1:] for word in ("--predictions", str(path))]
    done = CliRunner().invoke(app, ["eval", *typed, "--annotations", str(paths[0]), "--as", "blink", *extra])
    assert done.exit_code == 0, done.output
    return dict(line.split() for line in done.stdout.splitlines())


def test_saved_outputs_of_blink_are_scored_against_their_own_answers_or_the_questions(tmp_path):
    saved = outputs(
        ("val_Jigsaw_1", "(A)", "(A) x", "(A)"), ("val_Jigsaw_2", "(B)", "no idea", "(Z) none"),
        ("val_Counting_1", "(C)", "(C)", "(C)"),
    )  # fmt: skip
    found = scored(tmp_path, saved, saved)
    assert (found["subtask/Jigsaw"], found["subtask_mean"], found["micro"], found["queries"]) == (
        "50.00",
        "75.00",
        "66.67",
        "3",
    )
    unparsed = [{"idx": row["idx"], "full_prediction": row["full_prediction"]} for row in saved["val"]]
    again = scored(tmp_path, saved, unparsed)
    assert again["subtask_mean"] == "75.00" and again["parse_failed"] == "33.33"
    one_task = outputs(("val_Counting_1", "(C)", "(C)", "(C)"))
    assert scored(tmp_path, saved, one_task)["micro"] == "33.33"
    assert scored(tmp_path, saved, one_task, extra=("--answered-only",))["subtask_mean"] == "100.00"
    questions = [
        {"idx": row["idx"], "answer": row["answer"], "choices": ["x", "y", "z"], "sub_task": row["idx"].split("_")[1]}
        for row in saved["val"]
    ]
    assert scored(tmp_path, questions, saved) == found


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"val": [{"idx": "val_Jigsaw_1", "prediction": 1}]}, "wanted idx, and prediction or full_prediction"),
        ({"val": {"idx": "x"}}, "wanted lists of objects by split, or one list"),
        (outputs(*[("val_Jigsaw_1", "(A)", "(A)", "(A)")] * 2), "'val_Jigsaw_1' is predicted twice"),
        (outputs(("val_Jigsaw_9", "(A)", "(A)", "(A)")), "1 of 1 predictions are for none of 1 annotations"),
    ],
)
def test_mistakes_in_saved_outputs_are_told(predictions, message, tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(outputs(("val_Jigsaw_1", "(A)", "(A)", "(A)"))))
    (tmp_path / "found.json").write_text(json.dumps(predictions))
    from grpo_mm.tools.prediction_files import score_files

    with pytest.raises(ConfigError, match=message):
        score_files("blink", predictions=[tmp_path / "found.json"], annotations=[tmp_path / "gt.json"])
