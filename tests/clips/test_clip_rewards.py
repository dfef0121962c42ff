"""Rewards of clips on clips made by hand, with numbers worked out by hand."""

import math

import pytest
import torch
from tiny_reward_models import build_dino, build_open_clip

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.looking.clips.movement import displacement, flicker, interpolation_error, motion
from grpo_mm.rewards.clips.clip_judge import ClipJudge
from grpo_mm.rewards.clips.pixel_movement import MotionAmount, MotionSmoothness, TemporalFlicker
from grpo_mm.rewards.clips.temporal_consistency import TemporalConsistency, consistency
from grpo_mm.rewards.clips.video_ocr import VideoOcr
from grpo_mm.rewards.judges.comparing import ReadsPairs
from grpo_mm.rewards.judges.win_rate import WinRate
from grpo_mm.types import Clip, Clips, Prompt


def grain(seed=0, size=(64, 96)):
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def shifted(pixels, frames=5, fps=8.0, picture=None):
    """A picture that goes `pixels` to the right from frame to frame, and comes in again at the left."""
    picture = grain() if picture is None else picture
    return Clip(torch.stack([picture.roll(pixels * f, 2) for f in range(frames)]), fps)


def ask(reward, *clips):
    return reward(Clips(clips), [Prompt(f"p/{i}", "a text") for i in range(len(clips))])


# ── pixels ──


def test_a_still_flickers_nothing_moves_nothing_and_is_even():
    still = shifted(0)
    assert flicker(still.frames_FCHW) == 0 and motion(still.frames_FCHW, 8.0) == 0
    assert interpolation_error(still.frames_FCHW) == 0
    assert ask(TemporalFlicker(), still)["score"].item() == 1 and ask(TemporalFlicker(), still)["flicker"].item() == 0
    assert ask(MotionAmount(), still)["score"].item() == 0 and ask(MotionSmoothness(), still)["score"].item() == 1


def test_flicker_of_black_and_white_in_turn_is_one_and_of_half_the_picture_a_half():
    blink = torch.tensor([0, 255, 0, 255], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    assert flicker(blink) == 1
    half = blink.clone()
    half[..., :2] = 0
    assert flicker(half) == 0.5
    steps = torch.tensor([0, 51, 51], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    assert flicker(steps) == pytest.approx((51 + 0) / 2 / 255)


@pytest.mark.parametrize("pixels", [1, 2, 4, -3])
def test_a_known_shift_is_found_in_shorter_sides_a_second(pixels):
    clip = shifted(pixels)
    assert motion(clip.frames_FCHW, clip.fps) == pytest.approx(abs(pixels) * 8 / 64)
    twice = Clip(clip.frames_FCHW, 16.0)
    assert ask(MotionAmount(), clip, twice)["score"].tolist() == pytest.approx([abs(pixels) / 8, abs(pixels) / 4])
    assert ask(MotionAmount(enough=0.5), clip)["score"].item() == pytest.approx(min(abs(pixels) / 4, 1))


def test_a_small_thing_that_moves_counts_by_how_far_it_goes():
    frames = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    for f in range(4):
        frames[f, :, 24:40, 8 + 4 * f : 24 + 4 * f] = grain(1, (16, 16))
    moved = displacement(frames)
    assert moved.shape == (3, 64) and float(moved.max()) == pytest.approx(4 / 64)
    assert motion(frames, 8.0) == pytest.approx(8 * 4 / 64, rel=0.35)
    assert motion(frames, 8.0, top=1.0) < motion(frames, 8.0) / 4
    large = frames.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert motion(large, 8.0) == pytest.approx(motion(frames, 8.0), rel=0.35), "the size of the picture does not count"


def test_grain_is_no_movement():
    noisy = (torch.full((6, 3, 64, 64), 120) + torch.randint(-2, 3, (6, 3, 64, 64))).to(torch.uint8)
    assert motion(noisy, 8.0) == 0 and flicker(noisy) > 0


def test_an_even_fade_is_smooth_and_a_jump_is_not():
    fade = torch.tensor([0, 50, 100, 150], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    jump = torch.tensor([0, 102, 0], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    found = ask(MotionSmoothness(), Clip(fade, 8.0), Clip(jump, 8.0))["score"]
    assert found.tolist() == pytest.approx([1, 1 - 102 / 255])


@pytest.mark.parametrize(
    "reward", [TemporalFlicker(), MotionAmount(), MotionSmoothness()], ids=lambda r: type(r).__name__
)
def test_hostile_clips(reward):
    single, tiny = Clip(grain()[None], 8.0), Clip(torch.zeros(3, 3, 1, 1, dtype=torch.uint8), 8.0)
    found = ask(reward, single, None, tiny, shifted(1))["score"]
    assert found[:2].isnan().all() and found[2:].isfinite().all(), "one frame says nothing of time"
    for wrong in (
        torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8),
        Clips([Clip(torch.zeros(2, 3, 8, 8), 8.0)]),
        Clips([Clip(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), 8.0)]),
        Clips([Clip(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 8.0)]),
        Clips([Clip(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.0)]),
        Clips([Clip(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), math.nan)]),
    ):
        with pytest.raises(UserError, match="wanted"):
            reward(wrong, [Prompt("p", "x")])
    with pytest.raises(UserError, match="wanted one prompt for each clip"):
        reward(Clips([shifted(1)]), [])
    assert reward(Clips(), [])["score"].shape == (0,)


def test_settings_that_mean_nothing_are_refused():
    for make in (lambda: MotionAmount(enough=0.0), lambda: MotionAmount(top=0.0), lambda: VideoOcr(every=0)):
        with pytest.raises(ConfigError, match="wanted"):
            make()


# ── features ──


def test_consistency_by_hand():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    features = torch.stack([a, b, -a])
    assert consistency(features, first=False) == pytest.approx((0.6 + 0) / 2), "below 0 counts 0"
    assert consistency(features, first=True) == pytest.approx(((0.6 + 0.6) / 2 + (0 + 0) / 2) / 2)
    assert consistency(torch.stack([a, a, a]), first=True) == 1 and math.isnan(consistency(a[None], first=True))


@pytest.mark.parametrize("by", ["dino", "clip"])
def test_a_still_is_consistent_and_one_frame_says_nothing(by, tmp_path):
    model = build_dino(tmp_path) if by == "dino" else build_open_clip(tmp_path)
    reward = TemporalConsistency(by=by, model=model)
    reward.check()
    cut = Clip(torch.stack([grain(0), grain(0), 255 - grain(3)]), 8.0)
    found = ask(reward, shifted(0), cut, Clip(grain()[None], 8.0), None)
    assert found["score"][0].item() == pytest.approx(1, abs=1e-5) and found["score"][1] < 1
    assert found["score"][2:].isnan().all() and found["worst"][1] <= found["neighbours"][1]
    near = ask(TemporalConsistency(by=by, model=model, against="neighbour"), cut)
    assert near["score"].item() == pytest.approx(found["neighbours"][1].item())


# ── models that answer ──


class Says:
    """A model that says these, in turn, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def ask(self, questions):
        self.asked += questions
        return [self.answers[i % len(self.answers)] for i in range(len(questions))]


def test_a_judge_sees_frames_with_their_times():
    model = Says("fine\nFinal Score: 4", "no number")
    found = ask(ClipJudge(vlm=model, frames=3), shifted(1, frames=9, fps=4.0), shifted(2, frames=2))
    assert found["score"][0].item() == pytest.approx(0.8) and found["score"][1].isnan()
    first, second = model.asked
    assert len(first.images) == 3 and torch.equal(first.images[2], shifted(1, frames=9).frames_FCHW[8])
    assert "at 0.00, 1.00, 2.00 s" in first.text and "of 2.25 seconds" in first.text and "[a text]" in first.text
    assert len(second.images) == 2


class PairModel(ReadsPairs, Says):
    form = "clip"


def test_two_clips_are_compared_by_frames_of_each():
    model = PairModel("<answer>Video 1 is better</answer>")
    reward = WinRate(judge=model, decimals=None)
    assert reward.takes == ("clips",)
    clips = Clips([shifted(1), shifted(2), None, shifted(1)])
    found = reward(clips, [Prompt("p", "a text")] * 4, torch.zeros(4, dtype=torch.int64))
    assert found["score"][2].isnan() and found["score"].nanmean().item() == pytest.approx(0.5)
    assert found["score"][0] == found["score"][0] and found["ties"][0] == pytest.approx(0.5), "equal clips tie unasked"
    assert (
        all(len(question.images) == 10 for question in model.asked) and "Video 2 (0.62 seconds" in model.asked[0].text
    )
    with pytest.raises(UserError, match="compares pictures by form: clip; wanted think, flex or edit"):
        reward(torch.stack([grain(0), grain(1)]), [Prompt("p", "x")] * 2, torch.zeros(2, dtype=torch.int64))


def test_equal_frames_at_another_rate_are_other_clips():
    model = PairModel("<answer>Video 2 is better</answer>")
    still = shifted(1)
    WinRate(judge=model)(
        Clips([still, Clip(still.frames_FCHW, 16.0)]), [Prompt("p", "x")] * 2, torch.zeros(2, dtype=torch.int64)
    )
    assert len(model.asked) == 1


class Reads:
    """Stands for the reader of letters: a frame says its text by its level."""

    def __call__(self, frames, prompts):
        score = frames[:, 0, 0, 0].float() / 100
        return {"score": score, "found": (score == 1).float()}


def test_every_fourth_frame_is_read():
    reward = VideoOcr()
    reward._ocr = Reads()
    frames = torch.tensor([100, 0, 0, 0, 50, 9, 9, 9, 0], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
    found = ask(reward, Clip(frames, 8.0))
    assert found["score"].item() == pytest.approx(0.5) and found["best"].item() == 1
    assert found["found"].item() == pytest.approx(1 / 3)
