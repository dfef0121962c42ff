"""Flicker, amount and evenness of movement, from pixels alone: no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.looking.clips.movement import flicker, interpolation_error, motion
from grpo_mm.rewards.shared.clips import takes_clips
from grpo_mm.types import Clip, Prompt


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


@dataclass
class TemporalFlicker:
    """score = (255 - mean absolute difference of neighbouring frames) / 255, 0 to 1: 1 of a still. The part `flicker` is 1 - score.

    Movement counts as flicker: VBench measures it on clips of things that stand still. NaN of a clip of one frame.

    Source: temporal flickering of VBench, arXiv:2311.17982.
    """

    @takes_clips
    def __call__(self, items: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """`Clips` -> score, flicker, [M] each; prompts are not read."""
        found = _column([flicker(clip.frames_FCHW) for clip in items])
        return {"score": 1 - found, "flicker": found}


@dataclass
class MotionAmount:
    """score = how fast that moves which moves most (`movement.motion`), in shorter sides of the picture a second; 0 of a still.

    With `enough` it is min(motion / enough, 1), so that more than that is worth nothing: shaking is the way to climb the bare measure.
    The part `motion` is the bare measure. NaN of a clip of one frame.

    Source: after dynamic degree of VBench, arXiv:2311.17982; see `movement.motion` for what is other here.
    """

    enough: float | None = None
    """Shorter sides a second that earn all there is, 0.25 say; null: the bare measure."""
    top: float = 0.05
    """Share of the picture's blocks that counts, those that go furthest; 1: all, so that what fills the picture counts more."""

    def __post_init__(self) -> None:
        if self.enough is not None and not self.enough > 0:
            raise ConfigError(f"motion_amount: enough = {self.enough}; wanted above 0, or null.")
        if not 0 < self.top <= 1:
            raise ConfigError(f"motion_amount: top = {self.top}; wanted above 0, at most 1.")

    @takes_clips
    def __call__(self, items: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """`Clips` -> score, motion, [M] each; prompts are not read."""
        found = _column([motion(clip.frames_FCHW, clip.fps, top=self.top) for clip in items])
        return {"score": found if self.enough is None else (found / self.enough).clamp_max(1), "motion": found}


@dataclass
class MotionSmoothness:
    """score = 1 - the mean absolute difference of each frame from the mean of its two neighbours, / 255; 1 of a still or of an even fade.

    NaN of a clip of fewer than three frames.

    Source: motion smoothness of VBench, arXiv:2311.17982. Deviates: the mean of the neighbours stands for its interpolation network, so
    even movement of sharp edges costs a little too; compare clips of like movement.
    """

    @takes_clips
    def __call__(self, items: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """`Clips` -> score [M]; prompts are not read."""
        return {"score": 1 - _column([interpolation_error(clip.frames_FCHW) for clip in items])}
