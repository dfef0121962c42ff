"""Moving shapes are drawn as their prompts say, and the reward reads back what moves and where to."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from grpo_mm.datasets.worlds import moving_shapes as world
from grpo_mm.datasets.worlds.moving_shapes import CaptionedClips, MovingScene, MovingShapesPrompts, draw_clip
from grpo_mm.datasets.worlds.shape_world import COLORS, Scene, Thing
from grpo_mm.rewards.clips import moving_shapes as verifier
from grpo_mm.rewards.clips.moving_shapes import MovingShapesReward, score
from grpo_mm.types import Clip, Clips

TARGET = {"things": [{"shape": "circle", "color": "red"}, {"shape": "square", "color": "blue"}], "moves": "left"}
CIRCLE, SQUARE = Thing("circle", "red", 0.72, 0.26, 0.36), Thing("square", "blue", 0.4, 0.74, 0.36)


def _clip(*things: Thing, dx: float = -0.42, dy: float = 0.0) -> np.ndarray:
    return draw_clip(MovingScene(Scene(things), dx, dy))


def _drawn(count: int, seed: int = 0, things: int = 2) -> list[tuple[dict, np.ndarray]]:
    rng = random.Random(seed)
    chosen = rng.choices([prompt.target for prompt in world.prompts("train", things)], k=count)
    return [(spec, draw_clip(world.random_moving_scene(spec, rng))) for spec in chosen]


def test_splits_of_one_thing_share_no_combination_and_cover_all():
    splits = {split: {world.caption(spec) for spec in world.specs(split)} for split in ("train", "monitor", "report")}
    assert {split: len(texts) for split, texts in splits.items()} == {"train": 36, "monitor": 12, "report": 24}
    assert len(set.union(*splits.values())) == 72
    words = {word for text in splits["train"] for word in text.split()}
    assert words == {word for texts in splits.values() for text in texts for word in text.split()}


def test_splits_share_no_pair_and_are_large_enough():
    def pairs(split):
        return {
            frozenset((thing["color"], thing["shape"]) for thing in spec["things"]) for spec in world.pair_specs(split)
        }

    train, monitor, report = pairs("train"), pairs("monitor"), pairs("report")
    assert not train & monitor and not train & report and not monitor & report
    assert len(world.pair_specs("monitor")) == len(world.pair_specs("report")) == 288


def test_prompts_are_stable_and_unique():
    prompts = [
        prompt
        for split in ("train", "monitor", "report")
        for things in (1, 2)
        for prompt in MovingShapesPrompts(split, things).load()
    ]
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 1080 + 72
    first = MovingShapesPrompts("monitor", limit=1).load()[0]
    assert first.text == world.caption(first.target) and first == world.prompts("monitor")[0]


def test_things_stay_in_the_picture_and_touch_nothing():
    rng = random.Random(1)
    for spec in rng.choices(world.pair_specs("train"), k=200) + world.specs("train"):
        moving = world.random_moving_scene(spec, rng)
        for time in (0, 0.5, 1):
            a, *others = moving.at(time).things
            assert all(t.size / 2 <= place <= 1 - t.size / 2 for t in (a, *others) for place in (t.x, t.y))
            for b in others:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) > (a.size + b.size) / 2


def test_the_verifier_knows_the_directions_of_the_world():
    assert verifier.DIRECTIONS == world.DIRECTIONS


@pytest.mark.parametrize("things", [1, 2])
@pytest.mark.parametrize("noise", [0, 8])
def test_drawn_clips_score_one(noise, things):
    rng = np.random.default_rng(0)
    for spec, clip in _drawn(25, things=things):
        noisy = np.clip(clip + rng.normal(0, noise, clip.shape), 0, 255).astype(np.uint8)
        found = score(noisy, spec)
        assert found["all_correct"] == 1 and found["extras"] == 0 and found["score"] > 0.99


@pytest.mark.parametrize(
    "mistake, earned",
    [
        ({"moves": "right"}, 0.6),
        ({"moves": "up"}, 0.6),
        ({"things": TARGET["things"][::-1]}, 0.4),
        ({"things": [{"shape": "triangle", "color": "red"}, TARGET["things"][1]]}, 0.9),
    ],
)
def test_one_mistake_costs_its_share(mistake, earned):
    assert score(_clip(CIRCLE, SQUARE), TARGET)["score"] == pytest.approx(1, abs=1e-3)
    found = score(_clip(CIRCLE, SQUARE), {**TARGET, **mistake})
    assert found["score"] == pytest.approx(earned, abs=0.02) and found["all_correct"] == 0


def test_one_thing_alone_may_be_asked_for():
    alone = {"things": TARGET["things"][:1], "moves": "left"}
    found = score(_clip(CIRCLE), alone)
    assert found["score"] == pytest.approx(1, abs=1e-3) and found["all_correct"] == 1 and np.isnan(found["rest"])
    assert score(_clip(CIRCLE), {**alone, "moves": "down"})["score"] == pytest.approx(0.4, abs=1e-3)
    assert score(_clip(CIRCLE, SQUARE), alone)["score"] == pytest.approx(0.8, abs=0.01)


def test_a_wrong_color_earns_neither_color_nor_motion():
    found = score(_clip(dataclasses.replace(CIRCLE, color="green"), SQUARE), TARGET)
    assert found["color"] == 0.5 and found["motion"] == 0 and found["rest"] == 1 and found["extras"] == 1
    assert found["score"] < 0.45


def test_motion_has_to_go_on_from_frame_to_frame():
    clip = _clip(CIRCLE, SQUARE)
    assert score(clip[[0] * 9], TARGET)["motion"] == 0
    jump = score(clip[[0, 0, 0, 0, 8, 8, 8, 8, 8]], TARGET)
    assert 0 < jump["motion"] < 0.2
    assert score(clip[[0, 2, 1, 4, 3, 6, 5, 8, 7]], TARGET)["motion"] < 0.7
    assert score(clip[::-1], TARGET)["motion"] == 0


def test_a_diagonal_motion_is_none():
    assert score(_clip(CIRCLE, SQUARE, dx=-0.42, dy=0.3), TARGET)["motion"] == 0


def test_what_should_stay_earns_nothing_for_moving_or_for_being_gone():
    moved = _clip(SQUARE, CIRCLE, dx=0.4)
    assert score(moved, TARGET)["rest"] == 0
    assert score(_clip(CIRCLE), TARGET)["rest"] == 0


def test_things_in_single_frames_and_stray_things_cost():
    clip = _clip(CIRCLE, SQUARE)
    clip[3:6] = 20
    assert score(clip, TARGET)["score"] < 0.9
    extra = score(_clip(CIRCLE, SQUARE, Thing("circle", "green", 0.85, 0.82, 0.2)), TARGET)
    assert extra["extras"] == 1 and extra["score"] == pytest.approx(0.8, abs=0.01) and extra["all_correct"] == 0


def test_the_verifier_never_raises_on_noise():
    rng = np.random.default_rng(0)
    for frames in (1, 2, 9):
        for size in (1, 7, 32):
            found = score(rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8), TARGET)
            assert 0 <= found["score"] < 0.5 and np.isfinite(list(found.values())).all()


def test_the_reward_scores_clips_and_not_what_is_none():
    drawn = _drawn(3)
    clips = Clips(Clip(torch.from_numpy(clip).permute(0, 3, 1, 2), 8.0) for _, clip in drawn)
    by_text = {prompt.text: prompt for prompt in world.prompts("train", 2)}
    prompts = [by_text[world.caption(spec)] for spec, _ in drawn]
    found = MovingShapesReward()(Clips([*clips, None]), [*prompts, prompts[0]])
    assert found["score"][:3].tolist() == [1.0] * 3 and all(value[3].isnan() for value in found.values())
    assert set(found) == set(verifier.PARTS) and found["score"].dtype == torch.float32
    assert (MovingShapesReward()(clips, prompts[1:] + prompts[:1])["score"] < 1).all()
    alone = MovingShapesReward()(clips[:1], world.prompts("train")[:1])
    assert set(alone) == set(verifier.PARTS) - {"rest"}


@pytest.mark.parametrize("things", [1, 2])
def test_captions_are_wrong_as_often_as_asked(things):
    specs = {prompt.text: prompt.target for prompt in world.prompts("train", things)}
    clips, captions = CaptionedClips(things=things)(12, random.Random(0))
    assert clips.shape == (12, world.FRAMES, world.SIZE_PX, world.SIZE_PX, 3)
    assert all(score(clip, specs[text])["all_correct"] for clip, text in zip(clips, captions))
    clips, captions = CaptionedClips(things=things, wrong_direction=1.0)(8, random.Random(0))
    assert all(score(clip, specs[text])["motion"] == 0 for clip, text in zip(clips, captions))
    clips, captions = CaptionedClips(things=things, wrong_color=1.0)(8, random.Random(0))
    assert all(score(clip, specs[text])["color"] < 1 for clip, text in zip(clips, captions))


def test_colors_are_those_that_the_verifier_reads():
    from grpo_mm.rewards.images.shape_world import PALETTE

    assert PALETTE == COLORS
