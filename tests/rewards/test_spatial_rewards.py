"""Rewards of spatial reasoning: published fixtures, rules by hand, the reward objects, and hostile text for each of them."""

import json
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_mm import registry
from grpo_mm.datasets.worlds.scene_world import SceneWorld
from grpo_mm.errors import ConfigError
from grpo_mm.rewards.shared.edit_distance import edit_distance
from grpo_mm.rewards.spatial.box_grounding import DualBoxIou, SpatialGrounding, UnionBoxIou, spatial_grounding
from grpo_mm.rewards.spatial.boxes import as_boxes, iou
from grpo_mm.rewards.spatial.detection_confidence import DetectionConfidence, detection_rewards
from grpo_mm.rewards.spatial.detection_map import (
    DetectionMap,
    average_precision,
    mean_average_precision,
    weighted_detection,
)
from grpo_mm.rewards.spatial.grit import GritAnswer, GritCount, GritFormat
from grpo_mm.rewards.spatial.perception_boxes import PerceptionBoxes, hungarian_f1
from grpo_mm.rewards.spatial.referring_box import BoxAnswerFormat, ReferringBox
from grpo_mm.rewards.spatial.spacer import SpacerAnswer, map_score, parse_map
from grpo_mm.rewards.spatial.vigorl import Vigorl
from grpo_mm.rewards.text.edit_similarity import EditSimilarity, edit_similarity
from grpo_mm.rewards.text.mean_relative_accuracy import MeanRelativeAccuracy, first_number, mean_relative_accuracy
from grpo_mm.rewards.text.repetition import Repetition, adjacent_repetition
from grpo_mm.rollout.safe_call import score_safely
from grpo_mm.types import Prompt

PREDICTED = [(0, 0, 10, 5), (20, 20, 30, 30), (50, 50, 60, 60)]
REFERENCES = [(0, 0, 10, 10), (20, 20, 30, 30)]


def prompt(source: str = "", **target) -> Prompt:
    return Prompt("0", "where?", target=target, source=source)


def elements(boxes, tag: str = "bbox") -> str:
    return " and ".join(f"<{tag}>{list(box)}</{tag}>" for box in boxes)


def answer(items) -> str:
    return f"<think>so</think><answer>{json.dumps(items)}</answer>"


def score(reward, text: str, row: Prompt, part: str = "score") -> float:
    return reward([text], [row])[part].item()


# ── grounding of the reasoning ──


def test_spatial_grounding_of_the_fixture():
    assert spatial_grounding(as_boxes(PREDICTED), as_boxes(REFERENCES)) == pytest.approx(0.488501, abs=1e-6)
    text = f"<think>{elements(PREDICTED)}</think><answer>B</answer>"
    assert score(SpatialGrounding(), text, prompt(boxes=REFERENCES)) == pytest.approx(0.488501, abs=1e-6)


def test_a_negative_match_counts_as_nothing():
    assert spatial_grounding(as_boxes([(50, 50, 60, 60)]), as_boxes([(0, 0, 10, 10)])) == 0
    assert (
        spatial_grounding(as_boxes([]), as_boxes(REFERENCES))
        == 0
        == spatial_grounding(as_boxes(PREDICTED), as_boxes([]))
    )


@given(st.permutations(range(6)), st.permutations(range(4)))
def test_the_order_of_boxes_does_not_change_grounding(order, other_order):
    rng = random.Random(0)  # on a coarse grid, so that there are ties
    boxes, others = (
        as_boxes([[x, y, x + 5, y + 5] for x, y in [(rng.randint(0, 2) * 4, rng.randint(0, 2) * 4) for _ in range(n)]])
        for n in (6, 4)
    )
    shuffled = boxes[list(order)], others[list(other_order)]
    assert spatial_grounding(*shuffled) == pytest.approx(spatial_grounding(boxes, others))
    assert hungarian_f1(*shuffled) == pytest.approx(hungarian_f1(boxes, others))


def test_of_two_matchings_with_one_total_the_order_of_boxes_picks_none():
    """IoU 1/2 and 0, or 1/4 and 1/4: one pair counts from 1/2 on, or none."""
    boxes, others = as_boxes([(4, 0, 6, 1), (6, 0, 7, 1)]), as_boxes([(4, 0, 8, 1), (2, 0, 5, 1)])
    assert iou(boxes, others).tolist() == [[0.5, 0.25], [0.25, 0]]
    found = {hungarian_f1(own, other) for own in (boxes, boxes.flip(0)) for other in (others, others.flip(0))}
    assert len(found) == 1


def test_dual_iou_of_the_fixture_is_read_from_elements():
    text = f"<think>{elements(PREDICTED, 'box')}</think><answer>B</answer>"
    scores = DualBoxIou()([text], [prompt(boxes=REFERENCES)])
    assert {name: value.item() for name, value in scores.items()} == {
        "score": 0.625, "recall": 0.75, "precision": 0.5, "boxes": 3, "parse_failed": 0,
    }  # fmt: skip
    assert score(DualBoxIou(precision_weight=0), text, prompt(boxes=REFERENCES)) == 0.75


def test_union_iou_reads_the_numbers_of_grit():
    text = '<think>{"bbox_2d": [0,0,10,5]}, 20,20,30,30 and 50, 50, 60, 60</think>'
    assert score(UnionBoxIou(), text, prompt(boxes=REFERENCES)) == 0.5


@pytest.mark.parametrize("reward", [SpatialGrounding(), DualBoxIou()])
def test_naming_boxes_without_end_does_not_pay(reward):
    row = prompt(boxes=REFERENCES, width=100, height=100)
    everywhere = [(x, y, x + 10, y + 10) for x in range(0, 91, 10) for y in range(0, 91, 10)]
    exact, listed = (f"<think>{elements(boxes)}</think>" for boxes in (REFERENCES, everywhere))
    assert score(reward, exact, row) == pytest.approx(1)
    assert score(reward, listed, row) < 0.55
    assert score(reward, f"<think>{elements([REFERENCES[0]] * 9)}</think>", row) == pytest.approx(
        score(reward, f"<think>{elements(REFERENCES[:1])}</think>", row)
    )


def test_boxes_of_the_answer_do_not_ground_the_reasoning():
    text = f"<think>so</think><answer>{elements(REFERENCES)}</answer>"
    scores = SpatialGrounding()([text], [prompt(boxes=REFERENCES)])
    assert scores["score"].item() == 0 and scores["parse_failed"].item() == 1


def test_the_toy_scenes_own_demonstrations_are_grounded():
    prompts = SceneWorld(count=24).load()
    demos = [prompt.demo for prompt in prompts]
    for reward in (SpatialGrounding(), DualBoxIou(), UnionBoxIou()):
        assert torch.allclose(reward(demos, prompts)["score"], torch.ones(24, dtype=torch.float64))
        assert (reward(demos, prompts[1:] + prompts[:1])["score"] < 0.9).all()  # boxes of another scene


# ── GRIT ──

GOOD = "<think>a cat at 1,2,3,4</think><rethink>it sits</rethink><answer>yes</answer>"


@pytest.mark.parametrize(
    ("text", "paper", "repository"),
    [
        (GOOD, 1.5, 1.5),
        ("", 0, 0),
        ("<answer>yes</answer>", 0, 0.5),
        ("<answer>yes</answer><answer>no</answer>", 0, 0.25),
        ("<think>two words</think>", 0.5, 0.2),
        ("<rethink>b</rethink>", 0.5, 0.2),
        ("<rethink>b</rethink><think>a</think>", 0.5, 0.2),
        ("<think>a<rethink>b</think></rethink>", 0.5, 0.3),  # crossed
        ("<think>a</think><rethink>b</rethink>", 1, 0.4),  # a thought of one word
        ("<think>a b</think><rethink>c</rethink>", 1, 0.5),
        ("<think>a b</think><rethink>1,2,3,4</rethink>", 1.5, 0.5),  # a box too late for the repository
        ("1,2,3,4", 0.5, 0),  # no rethink
        ("</think><think>", 0, 0.1),
    ],
)
def test_the_form_of_grit_by_hand(text, paper, repository):
    assert score(GritFormat(), text, prompt()) == pytest.approx(paper)
    assert score(GritFormat(version="repository"), text, prompt()) == pytest.approx(repository)


def test_a_count_is_compared_row_by_row_and_only_where_it_was_asked():
    counting, other = prompt(answer="2", question_type="count"), prompt(answer="2", question_type="relation")
    text = "<think>1,2,3,4 and 50,60,70,80</think><rethink>so</rethink><answer>2</answer>"
    scores = GritCount()([text, text, text.replace("50,60,70,80", "")], [counting, other, counting])["score"]
    assert scores[0] == 0.5 and scores[1].isnan() and scores[2] == 0
    assert score(GritCount(weight=1.0, version="repository"), text, counting) == 1
    assert score(GritCount(weight=1.0, version="repository"), text.replace("rethink", "then"), counting) == 0
    assert score(GritCount(sources=("tallyqa",)), text, prompt("tallyqa", answer=2)) == 0.5
    assert not GritCount().applies_to(prompt(answer="two", question_type="count"))


def test_one_box_said_twice_is_not_two():
    row = prompt(answer="2", question_type="count")
    assert score(GritCount(), "1,2,30,40 and 1,2,30,40", row) == 0
    assert score(GritCount(merge_iou=None), "1,2,30,40 and 1,2,30,40", row) == 0.5


def test_no_box_is_right_where_there_is_nothing_to_count():
    assert score(GritCount(), "none", prompt(answer="0", question_type="count")) == 0.5


def test_an_answer_earns_equality_and_a_tenth_of_its_words():
    row = prompt(answer="a red cat")
    assert score(GritAnswer(), "<answer>A red cat.</answer>", row) == pytest.approx(1.1)
    assert score(GritAnswer(), "<answer>a red dog</answer>", row) == pytest.approx(0.1 * 2 / 3)
    assert score(GritAnswer(), "a red cat", row) == 0
    assert score(GritAnswer(exact=False), "<answer>a red cat</answer>", row) == pytest.approx(0.1)
    assert score(GritAnswer(), "<answer>(B) left</answer>", prompt(answer="B"), "accuracy") == 1
    assert score(GritAnswer(), "<answer>yes or no</answer>", prompt(answer="yes"), "accuracy") == 0
    assert math.isnan(score(GritAnswer(), "<answer>x</answer>", prompt()))


def test_repetition_is_the_share_of_adjacent_equal_runs():
    unlike, phrase = [str(i) for i in range(100)], list("abcdefgh")
    assert adjacent_repetition(unlike, 8) == 0 == adjacent_repetition(phrase, 8)
    assert adjacent_repetition(phrase * 2, 8) == 1 == adjacent_repetition(["x"] * 50, 8)
    rng = random.Random(0)
    for _ in range(50):
        things, n = [rng.choice("ab") for _ in range(rng.randint(0, 20))], rng.randint(1, 3)
        places = range(len(things) - 2 * n + 1)
        slow = [things[i : i + n] == things[i + n : i + 2 * n] for i in places]
        assert adjacent_repetition(things, n) == pytest.approx(sum(slow) / max(1, len(slow)))


def test_saying_it_again_costs():
    said, again = (score(Repetition(), text, prompt()) for text in ("a b c d e f g h i", "a b c d e f g h " * 9))
    assert said == 0.5 and again == 0
    with pytest.raises(ConfigError, match="n = 0; wanted at least 1"):
        Repetition(n=0)


# ── one box ──


def test_a_referred_box_is_scored_in_original_pixels():
    row = prompt(boxes=[[0, 0, 100, 50]], width=200, height=100, resized_width=56, resized_height=28)
    text = answer([{"bbox_2d": [0, 0, 28, 14], "label": "cup"}])
    assert score(ReferringBox(), text, row) == 1 == score(ReferringBox(), text, row, "acc_at_0.5")
    assert score(ReferringBox(), answer([{"bbox_2d": [0, 0, 28, 7]}]), row) == 0.5
    assert score(ReferringBox(coordinates="thousand"), answer([0, 0, 500, 250]), row) == 0.5
    wrong = prompt(boxes=[[0, 0, 100, 50]], width=200, height=100)
    assert score(ReferringBox(), text, wrong) < 0.1  # the same text read without the resized size


def test_the_first_box_of_the_answer_counts_and_an_answer_is_asked_for():
    row = prompt(boxes=[[0, 0, 10, 10]])
    assert score(ReferringBox(), "<answer>[0,0,10,5] [0,0,10,10]</answer>", row) == 0.5
    for text in ("[0,0,10,10]", "<answer>none</answer>", "<answer>[0,0,10"):
        assert score(ReferringBox(), text, row) == 0 and score(ReferringBox(), text, row, "parse_failed") == 1
    assert score(ReferringBox(inclusive=True), "<answer>[0,0,9,4]</answer>", prompt(boxes=[[0, 0, 9, 9]])) == 0.5


def test_the_form_of_a_box_answer():
    good = answer([{"bbox_2d": [1, 2, 3, 4], "label": "cup"}])
    bad = [
        "",
        "<answer>[1,2,3,4]</answer>",
        answer([1, 2, 3, 4]),
        good.replace("</answer>", ""),
        answer([{"bbox_2d": [1]}]),
    ]
    assert BoxAnswerFormat()([good, *bad], [prompt()] * 6)["score"].tolist() == [1, 0, 0, 0, 0, 0]


def test_perception_squares_the_iou_of_one_box_and_matches_many():
    row, many = prompt(boxes=[[0, 0, 10, 10]]), prompt(boxes=REFERENCES)
    assert (
        score(PerceptionBoxes(), "[0, 0, 10, 5]", row)
        == 0.25
        == score(PerceptionBoxes(), "[0, 0, 10, 5]", row, "iou") ** 2
    )
    text = str([list(box) for box in PREDICTED])
    found = PerceptionBoxes(task="detection")([text, "none"], [many, many])
    assert found["score"].tolist() == [2 * 2 / 5, 0] and found["iou"].tolist() == [0.75, 0]
    assert not PerceptionBoxes().applies_to(many) and PerceptionBoxes(task="detection").applies_to(row)


# ── detection ──


def test_average_precision_by_hand():
    assert average_precision([True, True], 2) == 1
    assert average_precision([], 2) == 0 == average_precision([False], 1)
    assert average_precision([True], 2) == pytest.approx(51 / 101)  # recalls 0 to 0.5
    assert average_precision([False, True], 1) == 0.5
    assert average_precision([True, False, True], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("things", [10, 20, 100])
def test_recalls_and_thresholds_stand_where_the_coco_scorer_has_them(things):
    """Its recalls are i · 0.01 as floats: 0.7000000000000001 is not reached by 7 of 10, 0.29 is by 29 of 100."""
    for right in range(1, things):
        reached = sum(i * 0.01 <= right / things for i in range(101))
        assert average_precision([True] * right, things) == pytest.approx(reached / 101)
    assert average_precision([True] * 7, 10) == pytest.approx(70 / 101)
    for share, fits in ((0.85, 8), (0.9, 9)):
        assert mean_average_precision(torch.tensor([[share]], dtype=torch.float64), "a", "a") == pytest.approx(
            fits / 10
        )


def test_map_is_the_mean_over_labels_and_thresholds():
    references = as_boxes([(0, 0, 10, 10), (20, 20, 30, 30)])
    boxes = as_boxes([(0, 0, 10, 8), (20, 20, 30, 30), (50, 50, 60, 60)])
    table = iou(boxes, references)
    assert mean_average_precision(table, "abc", "ab") == pytest.approx((7 / 10 + 1) / 2)  # 0.8 is reached by 7 of 10
    assert mean_average_precision(table, "bac", "ab") == 0
    assert mean_average_precision(table[:0], "", "ab") == 0
    assert mean_average_precision(table, "aaa", "aa") == pytest.approx((7 + 3 * 51 / 101 * 0.5) / 10)


def test_two_boxes_on_one_thing_are_one_hit():
    table = iou(as_boxes([(0, 0, 10, 10)] * 3), as_boxes([(0, 0, 10, 10)]))
    assert mean_average_precision(table, "aaa", "a") == 1  # recall 1 is reached at once: what follows is free
    table = iou(as_boxes([(0, 0, 10, 10), (0, 0, 10, 10), (20, 20, 30, 30)]), as_boxes(REFERENCES))
    assert mean_average_precision(table, "aaa", "aa") == pytest.approx((51 + 50 * 2 / 3) / 101)
    row = prompt(boxes=[[0, 0, 10, 10]], box_names=["a"])
    text = answer([{"bbox_2d": [0, 0, 10, 10], "label": "a"}] * 3)
    assert score(DetectionMap(version="map"), text, row) == 1
    assert score(DetectionMap(), text, row) == pytest.approx(1 / 3) == score(DetectionMap(), text, row, "length")


def test_weighted_detection_by_hand():
    references, boxes = as_boxes(REFERENCES), as_boxes(PREDICTED)
    table = iou(boxes, references)
    assert weighted_detection(table, "abc", "ab") == pytest.approx(0.7 * 0.75 + 0.3 * (1 - (0 + 1 / 3) / 2))
    assert weighted_detection(table, "ABC", "ab") == weighted_detection(table, "abc", "ab")
    assert weighted_detection(table, "xbc", "ab") == pytest.approx(0.7 * 0.5 + 0.3 * (1 - (0 + 1 / 3) / 2))
    assert weighted_detection(table[:0], "", "ab") == 0 == weighted_detection(table[:, :0], "abc", "")
    assert weighted_detection(table[:0, :0], "", "") == 1


@pytest.mark.parametrize("version", ["map", "od_length", "weighted"])
def test_of_an_empty_picture_nothing_is_to_be_listed(version):
    reward, row = DetectionMap(version=version), prompt(boxes=[])
    assert reward.applies_to(row) and not reward.applies_to(prompt())
    assert [
        score(reward, text, row) for text in ("<answer>None</answer>", answer([]), answer([{"bbox_2d": [1, 2, 3, 4]}]))
    ] == [1, 1, 0]
    assert score(reward, "None", row) == 0  # without an answer
    assert score(reward, answer([]), prompt(boxes=[[1, 2, 3, 4]])) == 0


def test_labels_that_nothing_has_cost_only_length():
    row = prompt(boxes=[[0, 0, 10, 10]], box_names=["cat"])
    listed = [{"bbox_2d": [0, 0, 10, 10], "label": label} for label in ("dog", "cat", "cow", "hen")]
    assert score(DetectionMap(version="map"), answer(listed), row) == 1
    assert score(DetectionMap(), answer(listed), row) == 0.25


def test_of_a_list_that_is_cut_off_the_whole_boxes_count():
    row = prompt(boxes=REFERENCES)
    text = answer([{"bbox_2d": list(box)} for box in REFERENCES]).replace("30]}]", "")
    assert score(DetectionMap(), text, row) == pytest.approx(51 / 101)


def test_confident_boxes_should_be_right_and_wrong_ones_unsure():
    table = iou(as_boxes(PREDICTED), as_boxes([(0, 0, 10, 9), (20, 20, 30, 30)]))
    confidence = torch.tensor([0.9, 0.8, 0.3])
    position, sure = detection_rewards(table, confidence)
    assert position == pytest.approx((5 / 9 + 1) / 3) and sure == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    one, _ = detection_rewards(table[1:2], confidence[1:2], version="first")
    assert one == 1 and detection_rewards(table[1:2], confidence[1:2])[0] == 0.5  # the second version asks for all
    assert detection_rewards(table[:0], confidence[:0]) == (0, 0)
    assert detection_rewards(table[2:], torch.tensor([7.0])) == (0, 0)


def test_an_iou_of_one_half_is_no_match_for_visual_rft():
    assert detection_rewards(iou(as_boxes(PREDICTED[:1]), as_boxes(REFERENCES[:1])), torch.tensor([1.0])) == (0, 0)


def test_objects_with_position_and_confidence_are_read_without_duplicates():
    row = prompt(boxes=REFERENCES)
    items = [
        {"Position": list(box), "Confidence": sure} for box, sure in zip([*REFERENCES, REFERENCES[0]], (0.9, 0.6, 0.1))
    ]
    scores = DetectionConfidence()([answer(items), answer([{"Position": [0, 0, 10, 10]}])], [row, row])
    assert scores["score"].tolist() == pytest.approx([1 + 0.75, 0]) and scores["boxes"].tolist() == [2, 0]


# ── text, numbers, maps, points ──


@given(st.text(alphabet="abé ", max_size=12), st.text(alphabet="abé ", max_size=12))
def test_edits_on_big_integers_are_those_of_the_table(a, b):
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    assert edit_distance(a, b) == row[-1] == edit_distance(b, a)


def test_edit_similarity_is_of_the_longer_text():
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity("", "") == 1 and edit_similarity("abc", "") == 0 == edit_similarity("xyz", "abc")
    row = prompt(answer="STOP", answer_type="OCR")
    assert score(EditSimilarity(), " STOP\n", row) == 1 and score(EditSimilarity(), "SHOP", row) == 0.75
    tagged = EditSimilarity(tag="answer")
    assert score(tagged, "<answer>STOP</answer>", row) == 1 and score(tagged, "STOP", row, "parse_failed") == 1
    assert not EditSimilarity().applies_to(prompt(answer="B", answer_type="multiple choice"))


@pytest.mark.parametrize(("number", "official", "tolerant"), [(9, 0.9, 0.9), (10, 1, 1), (5, 0.1, 0.1), (8, 0.6, 0.7)])
def test_mean_relative_accuracy_of_the_fixture(number, official, tolerant):
    assert mean_relative_accuracy(number, 10, tolerance=None) == pytest.approx(official, abs=1e-12)
    assert mean_relative_accuracy(number, 10) == pytest.approx(tolerant, abs=1e-12)


def test_mean_relative_accuracy_of_odd_numbers():
    assert mean_relative_accuracy(0, 0) == 1 and mean_relative_accuracy(1, 0) == 0
    for odd in (math.nan, math.inf, -math.inf):
        assert mean_relative_accuracy(odd, 10) == 0 == mean_relative_accuracy(10, odd)
    assert mean_relative_accuracy(-9, -10) == 0.9 and mean_relative_accuracy(-10, 10) == 0


@given(st.floats(0.01, 100), st.floats(-200, 200))
def test_both_forms_of_it_differ_on_boundaries_only(truth, number):
    official, tolerant = (mean_relative_accuracy(number, truth, tolerance=own) for own in (None, 1e-9))
    edge = (1 - abs(number - truth) / truth) * 20
    assert official == pytest.approx(tolerant) or abs(edge - round(edge)) < 1e-6
    assert 0 <= official <= tolerant + 1e-12 <= 1 + 1e-9


def test_numbers_are_read_out_of_answers():
    row = prompt(answer="10", answer_type="numerical")
    texts = ["<answer>about 9 m</answer>", "9", "<answer>none</answer>", "<answer>1,000</answer>"]
    scores = MeanRelativeAccuracy()(texts, [row] * 4)
    assert scores["score"].tolist() == [0.9, 0.9, 0, 0] and scores["parse_failed"].tolist() == [0, 0, 1, 0]
    assert first_number("1,234.5 or 6") == 1234.5 and first_number("-.5") == -0.5 and first_number("x2") is None
    assert first_number("1e999") is None
    assert not MeanRelativeAccuracy().applies_to(prompt(answer="B", answer_type="multiple choice"))


MAP = {"chair": [(2, 3), (8, 8)], "Table": [(5, 5)]}


def test_a_map_is_scored_by_the_distance_of_its_things():
    assert map_score(MAP, MAP) == pytest.approx(1)
    assert map_score({}, MAP) == 0 == map_score(MAP, {})
    assert map_score({"table": [(5, 6)]}, MAP) == pytest.approx((1 - 1 / (10 * 2**0.5)) / 3)
    assert map_score({"chair": [(2, 3)]}, MAP) == pytest.approx(2 * (1 / 2) / 3)  # one of two
    assert map_score({"chair": [(8, 8), (2, 3)] * 2}, MAP) == pytest.approx(2 * (2 / 4) / 3)  # twice too many
    assert map_score(MAP | {"lamp": [(0, 0)]}, MAP) == pytest.approx(1)  # what is not asked for is passed over
    assert map_score({"table": [(math.inf, 5)]}, MAP) == 0


def test_a_map_is_read_as_it_is_written():
    assert parse_map("{\"Chair\": [[2, 3], [8, 8]], 'table': [5, 5]}") == {"chair": [(2, 3), (8, 8)], "table": [(5, 5)]}
    assert parse_map('{"chair": [(2, 3), [8') == {"chair": [(2, 3)]}
    assert parse_map("no map") == {} and len(parse_map('"a": ' + "[1,2]," * 900)["a"]) == 200


def test_a_map_adds_to_a_right_answer_and_a_void_one_takes_it_all():
    row = prompt(answer="B", answer_type="multiple choice", map=MAP)
    drawn = "<map>{'table': [5, 5]}</map>"
    assert score(SpacerAnswer(), "<answer>B</answer>", row) == 1
    assert score(SpacerAnswer(), drawn + "<answer>B</answer>", row) == pytest.approx(1 + 1 / 3)
    assert score(SpacerAnswer(), "<map>nothing</map><answer>B</answer>", row) == 0
    assert score(SpacerAnswer(), drawn + "<answer>C</answer>", row) == 0 == score(SpacerAnswer(), drawn + "B", row)
    assert score(SpacerAnswer(), "<map>nothing</map><answer>B</answer>", prompt(answer="B")) == 1  # no reference
    number = prompt(answer=10, answer_type="numerical", map=MAP)
    assert score(SpacerAnswer(), drawn + "<answer>9</answer>", number) == pytest.approx(0.9 + 1 / 3)
    assert score(SpacerAnswer(), drawn + "<answer>7</answer>", number) == pytest.approx(0.5)  # not above one half
    assert not SpacerAnswer().applies_to(prompt(answer="a cat", answer_type="free text"))


def test_a_thought_is_tied_to_a_point():
    row, reward = prompt(answer="B", answer_type="multiple choice"), Vigorl()
    tied, loose = "<think>the cup (12, 30)</think><answer>B</answer>", "<think>the cup</think><answer>B</answer>"
    assert score(reward, tied, row) == 1 and score(reward, loose, row) == 0.5
    assert score(reward, tied.replace("B", "C"), row) == 0.5
    assert score(reward, "the cup (12, 30) B", row) == 0
    assert score(reward, "<think>the cup</think><answer>B (12, 30)</answer>", row, "points") == 0


def test_without_an_answer_a_point_in_a_box_is_wanted():
    row = prompt(boxes=[[10, 10, 20, 20]], width=100, height=50)
    think = "<think>there (1, 2)</think><answer>{}</answer>"
    assert [score(Vigorl(), think.format(text), row) for text in ("(15, 15)", "(20, 10)", "(25, 15)", "here")] == [
        1,
        1,
        0.5,
        0.5,
    ]
    assert score(Vigorl(coordinates="thousand"), think.format("(150, 300)"), row) == 1


# ── all of them ──

REWARDS = {
    entry.kind: registry.lookup("reward", entry.kind)()
    for entry in registry.entries("reward")
    if entry.target.split(":")[0].rsplit(".", 1)[1]
    in (
        "box_grounding", "grit", "repetition", "referring_box", "detection_map", "detection_confidence", "perception_boxes",
        "edit_similarity", "spacer", "vigorl", "mean_relative_accuracy",
    )
}  # fmt: skip
HOSTILE = [
    "",
    " ",
    "\x00",
    "\ud800",
    "[" * 2000,
    "<bbox>" * 2000,
    "<think>" * 2000,
    "[1,2,3,4]" * 5000,
    "<answer>" + '{"bbox_2d": [1, 2, 3, 4], "label": "a", "confidence": 1e999},' * 2000 + "</answer>",
    "<think>" + "<bbox>[1e999, -1e999, 5, 1e308]</bbox>" * 200 + "</think><answer>1e999</answer>",
    "<think>(1e999, 1)</think><answer>(1e999, 1e999)</answer>",
    "<map>" + '"a": [[1e999, 1]]' * 500 + "</map><answer>4</answer>",
    "<answer>" + "9" * 5000 + "</answer>",
    "<answer>[٣,٤,٥,٦]</answer>",
]
ROWS = {
    "box": prompt(boxes=[[1, 2, 30, 40]], box_names=["a"], width=84, height=84),
    "choice": prompt(answer="B", answer_type="multiple choice", boxes=[[1, 2, 30, 40], [5, 5, 9, 9]], width=84, height=84, map=MAP),
    "number": prompt(answer="4", answer_type="numerical", question_type="count", map=MAP),
    "text": prompt(answer="STOP", answer_type="ocr"),
    "odd boxes": prompt(boxes=[[5, 5, 1, 1], [3, 3, 3, 3]], width=84, height=84),
    "nothing": Prompt("0", "where?"),
    "no mapping": Prompt("0", "where?", target="a cat"),
}  # fmt: skip


def test_every_kind_of_this_topic_is_tried():
    assert len(REWARDS) == 16


@pytest.mark.parametrize("kind", REWARDS)
def test_hostile_text_is_scored_with_a_number_wherever_a_reward_applies(kind):
    reward = REWARDS[kind]
    for row in ROWS.values():
        scores = reward(HOSTILE, [row] * len(HOSTILE))["score"]
        assert scores.isfinite().all() if reward.applies_to(row) else scores.isnan().all()
        assert not ((scores < 0) | (scores > 2)).any()


@pytest.mark.parametrize("kind", REWARDS)
def test_rows_are_scored_on_their_own(kind):
    """In any company the same: nothing is taken from the first row of a batch, and nothing fails."""
    reward, rng = REWARDS[kind], random.Random(0)
    texts = [
        GOOD,
        answer([{"bbox_2d": [1, 2, 30, 40], "label": "a", "confidence": 0.9}]),
        f"<think>{elements(PREDICTED)}</think>",
    ]
    pairs = [(text, row) for text in texts for row in ROWS.values()]
    rng.shuffle(pairs)
    scores, errors = score_safely(reward, [text for text, _ in pairs], [row for _, row in pairs])
    assert errors == []
    for i, (text, row) in enumerate(pairs):
        alone = reward([text], [row])["score"].float()
        assert torch.equal(alone, scores["score"][i : i + 1]) or (alone.isnan().all() and scores["score"][i].isnan())


def test_a_row_without_the_size_it_needs_fails_alone_and_says_why():
    rows = [prompt(boxes=[[0, 0, 42, 42]], width=84, height=84), prompt(boxes=[[0, 0, 42, 42]])]
    text = "<think><bbox>[0, 0, 500, 500]</bbox></think>"
    scores, errors = score_safely(SpatialGrounding(coordinates="thousand"), [text, text], rows)
    assert scores["score"][0] == 1 and scores["score"][1].isnan()
    assert "wanted numbers above 0" in errors[-1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GritFormat(version="v2"), "version = 'v2'; wanted paper or repository"),
        (lambda: GritCount(version="v2"), "version = 'v2'"),
        (lambda: DetectionMap(version="ap"), "version = 'ap'; wanted one of map, od_length, weighted"),
        (lambda: DetectionConfidence(version="v3"), "wanted first or second"),
        (lambda: PerceptionBoxes(task="ocr"), "task = 'ocr'; wanted grounding or detection"),
        (lambda: Vigorl(weight=2), "weight = 2; wanted from 0 to 1"),
    ],
)
def test_a_setting_that_is_no_choice_is_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
