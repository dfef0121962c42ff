"""What stands in a prompt's media as a processor of pictures and videos takes it, and media that make it so by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.opened import is_video, open_media
from grpo_mm.pipelines.vlm.models.family import Family

__all__ = ["are_ready", "check_shape", "fit_media", "is_video", "open_media", "whole_patch"]

LONGEST_SHAPE = 200


def fit_media(media: Any, processor: Any, family: Family) -> None:
    """Tells media that make frames, if they listen (`fit`), what the model's processor would make of them.

    Raises:
        ConfigError: the media's settings exclude that.
    """
    if not hasattr(media, "fit") or not family.fits_media:
        return
    size = processor.size
    limits = (int(size["shortest_edge"]), int(size["longest_edge"]))
    of_frames, of_clips = (None, limits) if family.time == "text" else (limits, None)
    media.fit(processor.patch_size * processor.merge_size, frame_pixels=of_frames, clip_pixels=of_clips)


def are_ready(media: Any, items: Any, family: Family) -> bool:
    """Whether all videos among a prompt's items were made by media that `fit` the model: then nothing resizes them again."""
    videos = [item for item in map(_bare, items) if is_video(item)]
    return (
        hasattr(media, "fit")
        and family.fits_media
        and bool(videos)
        and not any(hasattr(item, "frames_FCHW") for item in videos)
    )


def check_shape(frames_FCHW: Tensor) -> None:
    """Raises ValueError for frames that are too long and narrow: the limit that the families' own processors have."""
    height, width = frames_FCHW.shape[-2:]
    if max(height, width) > LONGEST_SHAPE * min(height, width):
        raise ValueError(f"frames of {height} × {width} pixels; one side may be {LONGEST_SHAPE} times the other.")


def whole_patch(frames_FCHW: Tensor, length: int) -> Tensor:
    """The frames, the last one repeated if there are fewer than share one step of the temporal grid.

    Qwen2-VL's and Qwen2.5-VL's processors do so by themselves; Qwen3-VL's refuses.
    """
    missing = length - len(frames_FCHW)
    return torch.cat([frames_FCHW, frames_FCHW[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else frames_FCHW


def _bare(item: Any) -> Any:
    return _bare(item.item) if hasattr(item, "alter") else item
