import random
from collections import Counter

import numpy as np
import pytest

from grpo_mm.datasets.worlds.clip_world import pairs
from grpo_mm.datasets.worlds.scene_world import (
    CELL_PX,
    GRID,
    QUESTION_TYPES,
    SIZE_PX,
    SceneLessons,
    SceneWorld,
    box_px,
    picture,
    random_question,
)
from grpo_mm.datasets.worlds.shape_world import Scene
from grpo_mm.rewards.answers.tags import tagged_text


def _questions(kind: str, count: int = 100, split: str = "report"):
    rng = random.Random(0)
    return [random_question(split, kind, rng) for _ in range(count)]


@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_a_box_is_the_outline_of_its_thing(kind):
    for question in _questions(kind, 30):
        seen_HW = (picture(question.scene) != picture(Scene(()))).any(axis=-1)
        for thing in question.things:
            column, row = int(thing.x * GRID), int(thing.y * GRID)
            y, x = np.nonzero(seen_HW[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX])
            seen = [x.min() + column * CELL_PX, y.min() + row * CELL_PX]
            seen += [x.max() + 1 + column * CELL_PX, y.max() + 1 + row * CELL_PX]
            # A pixel less where the outline crosses it, and two at the tip of a triangle.
            assert np.abs(np.array(seen) - box_px(thing)).max() <= 2


def test_the_relation_is_that_of_the_boxes():
    for question in _questions("relation"):
        first, second = (np.array(box_px(thing)) for thing in question.things)
        dx, dy = ((first + second * -1).reshape(2, 2).mean(axis=0)).tolist()
        assert question.answer == (
            ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else "above" if dy < 0 else "below"
        )


def test_a_count_is_the_number_of_boxes_and_a_color_is_that_of_the_only_such_shape():
    for question in _questions("count"):
        shape = question.things[0].shape
        assert int(question.answer) == len(question.things) == sum(t.shape == shape for t in question.scene.things)
    for question in _questions("color"):
        assert [t.color for t in question.scene.things if t.shape == question.things[0].shape] == [question.answer]


def test_relations_of_a_split_are_about_its_own_pairs():
    own = {frozenset(pair) for pair in pairs("report")}
    for question in _questions("relation"):
        assert frozenset((thing.color, thing.shape) for thing in question.things) in own


def test_the_commonest_answer_of_each_kind_is_no_good_guess():
    prompts = SceneWorld("report", count=600).load()
    for kind in QUESTION_TYPES:
        answers = Counter(p.target["answer"] for p in prompts if p.target["question_type"] == kind)
        assert sum(answers.values()) == 200 and max(answers.values()) < 0.45 * 200
        assert set(answers) <= {
            choice for p in prompts if p.target["question_type"] == kind for choice in p.target["choices"]
        }


def test_prompts_are_the_same_in_every_run_and_carry_their_boxes():
    first, second = (SceneWorld("monitor", count=12).load() for _ in range(2))
    assert [(p.id, p.text, p.target) for p in first] == [(p.id, p.text, p.target) for p in second]
    assert all(np.array_equal(a.media[0], b.media[0]) for a, b in zip(first, second))
    assert len({p.id for p in first}) == 12
    for prompt in first:
        assert prompt.media[0].size == (prompt.target["width"], prompt.target["height"]) == (SIZE_PX, SIZE_PX)
        assert len(prompt.target["boxes"]) == len(prompt.target["box_names"]) == prompt.demo.count("<bbox>")
        assert all(f"<bbox>{box}</bbox>" in prompt.demo for box in prompt.target["boxes"])
        assert tagged_text(prompt.demo, "answer") == prompt.target["answer"]


def test_disagreeing_lessons_answer_what_they_did_not_think():
    lessons = SceneLessons(question_types=("relation",), questions=1, styles={"think": 1}, disagreement=1.0)
    for seed in range(20):
        _, [(_, answer)] = lessons(random.Random(seed))
        thought = tagged_text(answer, "think").split()[-1]
        assert thought in ("left", "right", "above", "below") and tagged_text(answer, "answer") != thought
