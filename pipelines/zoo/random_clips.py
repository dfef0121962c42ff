"""Clips and pictures of random pixels in memory, for benchmarks: nothing is decoded, and every prompt has as many visual tokens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.processes.rng import stream
from grpo_mm.types import Prompt


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames as a media component gives them."""

    frames_FCHW: Tensor
    """uint8."""
    time_F: Tensor
    """Seconds."""
    fps: float


@dataclass(frozen=True)
class RandomClips:
    """`count` prompts with a clip each; the default has 64 frames of 224 × 392 pixels, 3,584 tokens of Qwen2.5-VL."""

    count: int = 8
    frames: int = 64
    height: int = 224
    width: int = 392
    fps: float = 2.0
    text: str = "When does the red circle appear? Think first, then answer."

    def load(self) -> list[Prompt]:
        return [Prompt(f"clip {n}", self.text, media=(self._clip(n),)) for n in range(self.count)]

    def _clip(self, number: int) -> Clip:
        size = (self.frames, 3, self.height, self.width)
        pixels = torch.randint(0, 256, size, generator=stream(0, "random_clips", number), dtype=torch.uint8)
        return Clip(pixels, torch.arange(self.frames, dtype=torch.float64) / self.fps, self.fps)


@dataclass(frozen=True)
class RandomPictures:
    """`count` prompts with a picture each; the default has 896 × 896 pixels, 1,024 tokens of Qwen2.5-VL."""

    count: int = 8
    height: int = 896
    width: int = 896
    text: str = "What is in the picture? Think first, then answer."

    def load(self) -> list[Prompt]:
        return [Prompt(f"picture {n}", self.text, media=(self._picture(n),)) for n in range(self.count)]

    def _picture(self, number: int) -> Tensor:
        generator = stream(0, "random_pictures", number)
        return torch.randint(0, 256, (3, self.height, self.width), generator=generator, dtype=torch.uint8)


def by_chance(texts: Sequence[str], prompts: Sequence[str], metadata: Any) -> list[float]:
    """A score in [0, 1) that says nothing of a text, so that the samples of a group differ and there is a gradient."""
    return [zlib.crc32(text.encode()) / 2**32 for text in texts]
