"""What a person sees of a prompt's media in samples and reports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from grpo_mm.errors import UserError
from grpo_mm.pipelines.vlm.prompting.open_media import open_media
from grpo_mm.types import Prompt

FRAMES, HEIGHT = 6, 96
CLIP_FRAMES, CLIP_HEIGHT = 24, 72


def thumbnails(media: Any, prompt: Prompt) -> Tensor | None:
    """uint8 [K, 3, H, W], at most `HEIGHT` high: the first of the prompt's media, a picture (K = 1) or a video.

    Frame k of a video is the one on the screen at the moment (k + 1/2) / K of its length. None for a prompt without
    media, or with unreadable ones.
    """
    found = _opened(media, prompt)
    if found is None:
        return None
    if not hasattr(found, "frames_FCHW"):
        picture_HWC = torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8).view(found.height, found.width, 3)
        return _small(picture_HWC.permute(2, 0, 1)[None])
    return _small(_spread(found, FRAMES))


def clip(media: Any, prompt: Prompt) -> Tensor | None:
    """uint8 [K, 3, H, W], at most `CLIP_HEIGHT` high: up to CLIP_FRAMES frames of the video that is the prompt's first medium, for
    playing: of those that were decoded, evenly over its length as in `thumbnails`. None where there is no video."""
    found = _opened(media, prompt)
    if found is None or not hasattr(found, "frames_FCHW"):
        return None
    return _small(_spread(found, min(CLIP_FRAMES, len(found.frames_FCHW))), CLIP_HEIGHT)


def _opened(media: Any, prompt: Prompt) -> Any:
    if not prompt.media:
        return None
    try:
        return open_media(media, prompt.media[0])
    except UserError:
        raise
    except (ValueError, OSError):
        return None


def _spread(video: Any, frames: int) -> Tensor:
    time_F = torch.as_tensor(video.time_F)
    length = getattr(video, "duration", None) or len(time_F) / float(video.fps)
    moment_K = (torch.arange(frames) + 0.5) / frames * length
    shown_K = (torch.searchsorted(time_F.double(), moment_K.double(), right=True) - 1).clamp_min(0)
    return torch.as_tensor(video.frames_FCHW)[shown_K]


def _small(pixels_KCHW: Tensor, most: int = HEIGHT) -> Tensor:
    height, width = pixels_KCHW.shape[-2:]
    if height <= most:
        return pixels_KCHW.contiguous()
    size = (most, max(1, round(width * most / height)))
    small = interpolate(pixels_KCHW.float(), size=size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)
