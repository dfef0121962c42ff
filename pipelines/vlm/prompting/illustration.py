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


def thumbnails(media: Any, prompt: Prompt) -> Tensor | None:
    """uint8 [K, 3, H, W], at most `HEIGHT` high: the first of the prompt's media, a picture (K = 1) or a video.

    Frame k of a video is the one on the screen at the moment (k + 1/2) / K of its length. None for a prompt without
    media, or with unreadable ones.
    """
    if not prompt.media:
        return None
    try:
        found = open_media(media, prompt.media[0])
    except UserError:
        raise
    except (ValueError, OSError):
        return None
    if not hasattr(found, "frames_FCHW"):
        picture_HWC = torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8).view(found.height, found.width, 3)
        return _small(picture_HWC.permute(2, 0, 1)[None])
    time_F = torch.as_tensor(found.time_F)
    length = getattr(found, "duration", None) or len(time_F) / float(found.fps)
    moment_K = (torch.arange(FRAMES) + 0.5) / FRAMES * length
    shown_K = (torch.searchsorted(time_F.double(), moment_K.double(), right=True) - 1).clamp_min(0)
    return _small(torch.as_tensor(found.frames_FCHW)[shown_K])


def _small(pixels_KCHW: Tensor) -> Tensor:
    height, width = pixels_KCHW.shape[-2:]
    if height <= HEIGHT:
        return pixels_KCHW.contiguous()
    size = (HEIGHT, max(1, round(width * HEIGHT / height)))
    small = interpolate(pixels_KCHW.float(), size=size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)
