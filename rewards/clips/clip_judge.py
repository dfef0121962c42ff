"""A vision-language model rates a clip by some of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rewards.judges.asks_vlm import AsksVlm
from grpo_mm.rewards.judges.unified_reward import parse_point
from grpo_mm.rewards.judges.vlm import Question, answers_of
from grpo_mm.rewards.shared.clips import takes_clips
from grpo_mm.types import Clip, Prompt, evenly


@dataclass
class ClipJudge(AsksVlm):
    """score = final score of the model / 5, so 0.2 to 1; NaN where there is no answer or no score in it.

    The model sees `frames` of the clip as pictures, the first and the last among them, and is told the moment of each.

    Source: the form of answer is UnifiedReward's (arXiv:2503.05236) for a single picture; the question is in our own words.
    """

    vlm: Annotated[Any, Role("vlm")]
    """Who is asked: kind transformers (a local model) or server."""
    frames: int = 8
    """Of the clip that are shown, evenly spread."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"clip_judge: frames = {self.frames}; wanted at least 1.")

    @takes_clips
    def __call__(self, items: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """`Clips` and M prompts -> score [M]."""
        questions = [asked_about(clip, prompt.text, self.frames) for clip, prompt in zip(items, prompts)]
        scores = [parse_point(answer) for answer in answers_of(self.vlm, questions)]
        return {"score": torch.tensor([torch.nan if s is None else s / 5 for s in scores], dtype=torch.float32)}


def asked_about(clip: Clip, caption: str, frames: int) -> Question:
    """The question on one clip, with its frames, for `parse_point`."""
    total = len(clip.frames_FCHW)
    chosen = evenly(total, frames)
    times = ", ".join(f"{number / clip.fps:.2f}" for number in chosen)
    text = f"""The pictures are frames of one generated video of {total / clip.fps:.2f} seconds, in their order, at {times} s. Rate the video by them. Three things count:
1. Alignment: does it show what the caption says, the movement it names among it?
2. Motion: does what moves go on from frame to frame as it would in the world, without jumps, and without standing still where the caption moves?
3. Quality: is each frame clear and free of faults, and do things keep their shape and colour?
Say in a line to each what you see. Then end with one line "Final Score: s", where s is a number from 1 (bad) to 5 (excellent).
Text Caption: [{caption}]"""
    return Question(text, tuple(clip.frames_FCHW[number] for number in chosen))
