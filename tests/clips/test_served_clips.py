"""Clips over the wire, in processes of their own and joined with those of others: frames and rates exactly."""

import json

import pytest
import torch
from served import Served

from grpo_mm.rewards.clips.pixel_movement import MotionAmount
from grpo_mm.rewards.images.jpeg import JpegSize
from grpo_mm.rewards.service.merging import _alike, joined
from grpo_mm.rewards.service.png import Pixels, Refused
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rewards.service.wire import Asked, pack_items, pack_prompt, read_request
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.rollout.isolated import IsolatedReward
from grpo_mm.rollout.isolated_pool import IsolatedPool
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Clip, Clips, Prompt

CPU = torch.device("cpu")


def clips():
    generator = torch.Generator().manual_seed(0)
    return Clips(
        Clip(torch.randint(0, 256, (frames, 3, *size), dtype=torch.uint8, generator=generator), fps)
        for frames, size, fps in ((4, (16, 24), 8.0), (1, (16, 24), 23.976), (3, (8, 8), 1 / 3))
    )


def prompts(count=3):
    return [Prompt(f"p/{i}", f"text {i}") for i in range(count)]


def level(clips, fps, prompts):
    """Whatever of a clip is read: exactly what was sent."""
    return {
        "score": [float(c.double().mean()) + 1000 * f for c, f in zip(clips, fps)],
        "frames": [len(c) for c in clips],
    }


def read(body, rows=3):
    whole = {
        "reward": "r",
        "prompts": [pack_prompt(p) for p in prompts(rows)],
        "row_prompt": list(range(rows)),
        "groups": None,
    }
    body = json.loads(json.dumps(whole | {"items": body}))
    return read_request(body, Pixels(picture=2**20, whole=2**24), applies=False).items


def test_frames_and_rate_come_back_bit_for_bit():
    found = read(pack_items(clips()))
    assert type(found) is Clips
    for ours, theirs in zip(clips(), found):
        assert (
            torch.equal(ours.frames_FCHW, theirs.frames_FCHW)
            and ours.fps == theirs.fps
            and theirs.frames_FCHW.dtype == torch.uint8
        )


def test_clips_without_a_rate_are_as_before():
    tensors = [clip.frames_FCHW for clip in clips()]
    found = read(pack_items(tensors))
    assert type(found) is list and all(torch.equal(a, b) for a, b in zip(tensors, found))


@pytest.mark.parametrize("fps", [None, [], [8.0, 8.0], [8.0, 0, 8.0], [8.0, -1, 8], [8, "8", 8], [8, None, 8], 8.0, {}])
def test_a_rate_that_is_none_is_refused(fps):
    with pytest.raises(Refused, match="fps is .*wanted 3 numbers above 0"):
        read(pack_items(clips()) | {"fps": fps})


def test_what_cannot_be_sent_is_named():
    empty = Clip(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), 8.0)
    for wrong in (
        None,
        empty,
        Clip(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.0),
        Clip(torch.zeros(2, 3, 8, 8), 8.0),
    ):
        with pytest.raises(Refused, match="output 1"):
            pack_items(Clips([clips()[0], wrong]))


@pytest.fixture(scope="module")
def served():
    one = Served({
        "function": FunctionReward("test_served_clips:level"), "motion": MotionAmount(),
        "jpeg": Scorer(JpegSize(), frames="mean"), "bare": JpegSize(),
    })  # fmt: skip
    yield one
    one.close()


@pytest.mark.parametrize("name", ["function", "motion", "jpeg"])
def test_a_served_reward_of_clips_gives_what_it_gives_here(name, served):
    here = Scoring({name: served.rewards[name]}, CPU)(clips(), prompts())[name]
    there = Scoring({name: Scorer(Remote(served.url, name))}, CPU)(clips(), prompts())[name]
    assert set(here) == set(there) and all(torch.equal(here[p].isnan(), there[p].isnan()) for p in here)
    assert all(torch.equal(here[p].nan_to_num(), there[p].nan_to_num()) for p in here)


def test_frames_are_taken_where_the_setting_stands(served):
    """On the entry that asks elsewhere: pictures are sent, and the server needs to know of no clip."""
    asking = Scoring({"r": Scorer(Remote(served.url, "bare"), frames="min")}, CPU)
    here = Scoring({"r": Scorer(JpegSize(), frames="min")}, CPU)
    assert torch.equal(asking(clips(), prompts())["r"]["score"], here(clips(), prompts())["r"]["score"])
    without = Scoring({"r": Scorer(Remote(served.url, "bare"))}, CPU)
    assert without(clips(), prompts())["r"]["score"].isnan().all() and "frames: mean" in without.first_error["r"]


def test_in_a_process_of_its_own():
    use = FunctionReward("test_served_clips:level")
    here = Scoring({"r": Scorer(use)}, CPU)(clips(), prompts())["r"]
    apart = IsolatedReward(use, name="r")
    pool = IsolatedPool(use, name="r", workers=2)
    try:
        for other in (apart, pool):
            found, errors = other.score(clips(), prompts(), device=CPU)
            assert (
                errors == []
                and torch.equal(found["score"], here["score"])
                and torch.equal(found["frames"], here["frames"])
            )
    finally:
        apart.end()
        pool.end()


def test_clips_of_several_askers_are_joined_and_not_with_others():
    tensors = [clip.frames_FCHW for clip in clips()]
    assert _alike(clips(), clips()) and not _alike(clips(), tensors) and not _alike(["a"], clips())
    both = joined([Asked("r", prompts(), clips()), Asked("r", prompts(), clips())])
    assert type(both.items) is Clips and len(both.items) == 6 and both.items[3].fps == 8.0


def test_what_a_reward_does_to_its_clips_is_its_own(monkeypatch):
    given = clips()
    before = [clip.frames_FCHW.clone() for clip in given]

    def spoils(clips, prompts):
        for clip in clips:
            clip.zero_()
        return [0.0] * len(clips)

    Scoring({"r": Scorer(spoils)}, CPU)(given, prompts())
    assert all(torch.equal(a, clip.frames_FCHW) for a, clip in zip(before, given))
