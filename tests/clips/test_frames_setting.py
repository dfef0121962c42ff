"""A reward of pictures asked about clips by `frames`; what a reward takes, known from the config."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_mm.config.typed_yaml import build
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.processes import clock
from grpo_mm.registry import lookup
from grpo_mm.rewards.images.image_quality import ImageQuality
from grpo_mm.rewards.images.jpeg import JpegSize
from grpo_mm.rewards.judges.comparing import PointwiseJudge
from grpo_mm.rewards.judges.win_rate import WinRate
from grpo_mm.rollout.outputs.frames import gathered, read_frames, spread
from grpo_mm.rollout.outputs.takes import check_takes, takes_of
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Clip, Clips, Prompt, evenly, join_items, pick_items

NAN = float("nan")
CPU = torch.device("cpu")


def levels(*levels_F, fps=8.0, side=8):
    """A clip whose frames are plain grey of these levels."""
    return Clip(torch.tensor(levels_F, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, side, side), fps)


class Level:
    """The level of a picture; NaN at 99, an error at 66."""

    takes = "pictures"

    def __call__(self, items, prompts):
        assert items.ndim == 4 and len(items) == len(prompts)
        found = items[:, 0, 0, 0].float()
        if (found == 66).any():
            raise ValueError("66 is no level")
        return {"score": torch.where(found == 99, NAN, found), "twice": 2 * found}


def prompts(count):
    return [Prompt(f"p/{i}", f"text {i}") for i in range(count)]


def asked(clips, frames, use=None, group=None):
    scoring = Scoring({"r": Scorer(use or Level(), frames=frames)}, CPU)
    return scoring(clips, prompts(len(clips)), group)["r"], scoring


def test_mean_and_lowest_of_the_frames_by_hand(caplog):
    clips = Clips([levels(10, 20, 60), None, levels(7), levels(50, 40)])
    mean, scoring = asked(clips, "mean")
    assert mean["score"].tolist()[0::2] == [30, 7] and mean["score"][3] == 45 and mean["score"][1].isnan()
    assert mean["twice"].tolist()[0] == 60 and mean["worst_frame"].tolist()[0::2] == [10, 7]
    assert "1 of 4 clips hold NaN" in caplog.text and not scoring.first_error
    low, _ = asked(clips, "min")
    assert low["score"].tolist()[0::2] == [10, 7] and low["score"][3] == 40 and low["twice"][0] == 20


def test_frames_are_spread_from_the_first_to_the_last():
    assert evenly(33, 3) == [0, 16, 32] and evenly(5, 8) == [0, 1, 2, 3, 4] and evenly(9, 1) == [4]
    assert evenly(81, 8)[0] == 0 and evenly(81, 8)[-1] == 80 and len(set(evenly(81, 8))) == 8
    clips = Clips([levels(*range(20))])
    assert asked(clips, {"take": "mean", "at_most": 2})[0]["score"].tolist() == [9.5]
    assert asked(clips, {"take": "min", "at_most": None})[0]["score"].tolist() == [0]
    assert asked(clips, {"at_most": 1})[0]["score"].tolist() == [10]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20))
def test_frames_that_are_looked_at_rise_and_are_as_many_as_were_asked_for(total, most):
    found = evenly(total, most)
    assert found == sorted(set(found)) and len(found) == min(total, most) and 0 <= found[0] <= found[-1] < total


def test_a_frame_without_a_score_leaves_its_clip_without_one_and_no_other():
    found, _ = asked(Clips([levels(10, 99), levels(10, 20)]), "mean")
    assert found["score"][0].isnan() and found["score"][1] == 15 and found["worst_frame"][0].isnan()
    assert found["twice"].tolist() == [109, 30]
    found, scoring = asked(Clips([levels(10, 66), levels(10, 20)]), "mean")
    assert found["score"][0].isnan() and found["score"][1] == 15 and "66 is no level" in scoring.first_error["r"]


def test_calls_are_counted_by_clips():
    counter = clock.use(clock.Clock())
    asked(Clips([levels(1, 2, 3), levels(4, 5, 6)]), "mean")
    assert counter.take()[1] == {"rewards": 2}


def test_clips_of_several_sizes_are_scored_size_by_size():
    use = JpegSize()
    one, two = levels(10, 200, side=8), levels(10, 200, side=64)
    both = asked(Clips([one, two]), "mean", use)[0]["score"]
    alone = [float(asked(Clips([clip]), "mean", use)[0]["score"]) for clip in (one, two)]
    assert both.tolist() == pytest.approx(alone) and alone[0] != alone[1]


def test_frames_at_the_same_place_are_compared_by_a_reward_over_sets():
    use = WinRate(judge=PointwiseJudge(Level()))
    clips = Clips([levels(10, 20), levels(5, 30), levels(1, 2), levels(3, 1)])
    group, of_sets = torch.tensor([0, 0, 1, 1]), [p for p in prompts(2) for _ in range(2)]
    for take, rate in (("mean", 0.5), ("min", 0.0)):
        scoring = Scoring({"r": Scorer(use, frames=take)}, CPU)
        assert scoring(clips, of_sets, group)["r"]["score"].tolist() == [rate] * 4 and not scoring.first_error


def test_the_setting_in_its_three_forms():
    assert read_frames(None, where="r") is None and read_frames("min", where="r").at_most == 8
    assert read_frames({"at_most": None}, where="r").at_most is None
    for wrong in ("max", {"take": "mean", "most": 3}, {"at_most": 0}, {"at_most": 2.5}, {"at_most": True}):
        with pytest.raises(ConfigError, match="rewards.r.frames is .*wanted mean, min, or"):
            read_frames(wrong, where="rewards.r")
    made = build(Scorer, {"use": {"kind": "jpeg"}, "frames": {"take": "min", "at_most": 4}}, path="rewards.r")
    assert read_frames(made.frames, where="r").take == "min"
    with pytest.raises(ConfigError, match="frames"):
        build(Scorer, {"use": {"kind": "jpeg"}, "frames": "max"}, path="rewards.r")


def pictured(images, prompts):
    return [0.0 for _ in images]


def moved(clips, fps, prompts):
    return [float(clip.float().mean()) + rate for clip, rate in zip(clips, fps)]


def written(completions, prompts):
    return [0.0 for _ in completions]


def test_what_a_reward_takes_is_known_before_it_is_asked():
    assert takes_of(JpegSize()) == {"pictures"} and takes_of(lookup("reward", "repetition")()) == {"texts"}
    assert takes_of(lookup("reward", "motion_amount")()) == {"clips"}
    assert takes_of(pictured) == {"pictures"} and takes_of(moved) == {"clips"} and takes_of(written) == {"texts"}
    assert takes_of(lambda items, prompts: []) == frozenset()
    assert takes_of(WinRate(judge=PointwiseJudge(ImageQuality()))) == {"pictures"}


def test_a_reward_that_does_not_take_what_is_made_is_refused_with_the_setting():
    with pytest.raises(ConfigError, match=r"rewards.a: JpegSize scores pictures, .*rewards.a.frames=mean, or min"):
        check_takes({"a": Scorer(JpegSize())}, "clips", place="rewards")
    with pytest.raises(ConfigError, match="watch.a: Repetition takes texts, and what is made are clips"):
        check_takes({"a": Scorer(lookup("reward", "repetition")())}, "clips", place="watch")
    with pytest.raises(ConfigError, match="rewards.a: MotionAmount takes clips, and what is made are pictures"):
        check_takes({"a": Scorer(lookup("reward", "motion_amount")())}, "pictures", place="rewards")
    with pytest.raises(ConfigError, match="rewards.a.frames is for a reward of pictures; MotionAmount takes clips"):
        check_takes({"a": Scorer(lookup("reward", "motion_amount")(), frames="mean")}, "clips", place="rewards")
    with pytest.raises(ConfigError, match="rewards.a.frames is for clips, and the policy makes pictures"):
        check_takes({"a": Scorer(JpegSize(), frames="mean")}, "pictures", place="rewards")
    check_takes({"a": Scorer(JpegSize(), frames="mean"), "b": Scorer(moved)}, "clips", place="rewards")
    check_takes({"a": Scorer(JpegSize()), "b": Scorer(written)}, None, place="rewards")  # a policy that does not say


def test_where_only_the_outputs_tell_it_is_refused_at_the_first_call():
    with pytest.raises(
        UserError, match="rewards.a: JpegSize scores pictures, and what is made are clips.*rewards.a.frames=mean"
    ):
        Scoring({"a": Scorer(JpegSize())}, CPU)(Clips([levels(1)]), prompts(1))
    with pytest.raises(UserError, match="scores pictures, and these are clips"):
        JpegSize()(Clips([levels(1)]), prompts(1))


def test_a_function_is_handed_frames_and_rate():
    clips = Clips([levels(1, 3, fps=16.0), levels(9, fps=4.0)])
    found = Scoring({"f": Scorer(moved)}, CPU)(clips, prompts(2))["f"]["score"]
    assert found.tolist() == [18.0, 13.0]
    scoring = Scoring({"f": Scorer(pictured, frames="mean")}, CPU)
    assert scoring(clips, prompts(2))["f"]["score"].tolist() == [0, 0]


def test_clips_stay_clips_where_they_are_picked_joined_and_cut():
    clips = Clips([levels(1), None, levels(2)])
    assert type(clips[0:2]) is Clips and type(pick_items(clips, torch.tensor([2, 0]))) is Clips
    assert type(join_items([clips, clips])) is Clips and clips[2].fps == 8.0
    shown = spread(clips, prompts(3), torch.tensor([5, 5, 5]), read_frames("mean", where="r"))
    assert shown.clip_V.tolist() == [0, 2] and shown.group_V.tolist() == [5, 5]
    nothing = gathered({"score": torch.zeros(0)}, torch.zeros(0, dtype=torch.int64), clips=2, take="mean")
    assert nothing["score"].isnan().all()
