"""Media that are changed after they are opened: noise on frames, frames out of order. The rows that answered them train on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo_mm.processes.rng import stream
from grpo_mm.types import Prompt


class Altered(Protocol):
    """What may stand in `Prompt.media` in place of an item: the item, and what is done to it once it is opened."""

    item: Any

    def alter(self, opened: Any) -> Any: ...


@dataclass(frozen=True)
class ShuffledFrames:
    """The frames of a video in another order, at the old times: pixels move, time stamps and counts do not.

    Source: arXiv:2503.21776 (Video-R1), the contrast of T-GRPO. Pictures stay as they are.
    """

    item: Any
    key: str
    """Names the order."""

    is_video = True

    def alter(self, opened: Any) -> Any:
        if not hasattr(opened, "frames_FCHW"):
            return opened
        count = len(opened.frames_FCHW)
        order = torch.randperm(count, generator=stream(0, "shuffled_frames", self.key))
        if count > 1 and torch.equal(order, torch.arange(count)):
            order = order.roll(1)
        return replace(opened, frames_FCHW=opened.frames_FCHW[order])


@dataclass(frozen=True)
class NoisyFrames:
    """Gaussian noise on every pixel of a video, or of a picture [3, H, W].

    Source: arXiv:2506.07464 (DeepVideo-R1), difficulty-increasing augmentation.
    """

    item: Any
    std: float
    """Of pixels from 0 to 1."""
    key: str
    """Names the noise."""

    is_video = True

    def alter(self, opened: Any) -> Any:
        if hasattr(opened, "frames_FCHW"):
            return replace(opened, frames_FCHW=self._noisy(opened.frames_FCHW))
        pixels = opened if torch.is_tensor(opened) else _pixels(opened)
        return self._noisy(pixels)

    def _noisy(self, pixels: Tensor) -> Tensor:
        noise = torch.randn(pixels.shape, generator=stream(0, "noisy_frames", self.key))
        return (pixels.float() + 255 * self.std * noise).round().clamp(0, 255).to(torch.uint8)


def _pixels(picture: Any) -> Tensor:
    """uint8 [3, H, W] of a PIL picture or an array."""
    import numpy as np

    if hasattr(picture, "convert"):
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return torch.as_tensor(picture)


def altered(prompt: Prompt, change: Callable[[Any], Any], *, name: str, text: str | None = None) -> Prompt:
    """The prompt with changed media, and perhaps another text: of an id of its own, and known as a repeat of the first."""
    return replace(
        prompt,
        id=f"{prompt.id}~{name}",
        text=prompt.text if text is None else text,
        media=tuple(change(item) for item in prompt.media),
        repeat_of=prompt.repeat_of or prompt.id,
    )
