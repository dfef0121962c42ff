"""What stands in a prompt's media, opened: a picture in RGB, or frames that are ready for the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import reason, shown
from grpo_mm.pipelines.vlm.models.family import Family

LONGEST_SHAPE = 200


def is_video(item: Any) -> bool:
    """Whether an item of `Prompt.media` has frames."""
    return bool(getattr(item, "is_video", hasattr(item, "frames_FCHW")))


def open_media(media: Any, item: Any) -> Any:
    """What stands in `Prompt.media` as `VideoFrames` or a PIL picture in RGB; an `Altered` item is opened, then changed.

    Raises:
        ConfigError: `media` does not open such things.
        ValueError, OSError: this one cannot be read, whatever `media` raised.
    """
    try:
        found = item.alter(open_media(media, item.item)) if hasattr(item, "alter") else media.load(item)
    except (UserError, ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{shown(item)} cannot be opened ({reason(error)})") from error
    if hasattr(found, "frames_FCHW"):
        return found
    if not hasattr(found, "convert") and not hasattr(found, "ndim"):
        raise ConfigError(
            f"the media of a prompt hold {type(item).__name__} {shown(item)}, which policy.media does not open. Give a picture, "
            "frames, or what it opens: for the frame store, VideoFile or ImageFile."
        )
    return _picture(found)


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


def _picture(found: Any) -> Any:
    """A PIL picture in RGB; ValueError for anything else than that or uint8 [3, H, W]."""
    from PIL import Image

    if isinstance(found, Image.Image):
        if found.mode != "RGB":
            raise ValueError(
                f"policy.media gave a picture of mode {found.mode}; wanted RGB (transparency on white, upright)."
            )
        return found
    array = torch.as_tensor(found)
    if array.dtype != torch.uint8 or array.ndim != 3 or array.shape[0] != 3:
        raise ValueError(f"a picture of shape {tuple(array.shape)} and type {array.dtype}; wanted uint8 [3, H, W].")
    return Image.fromarray(array.permute(1, 2, 0).contiguous().numpy())
