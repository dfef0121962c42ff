"""What stands in a prompt's media, opened by the component that a policy names: a picture in RGB, or frames."""

from __future__ import annotations

from typing import Any

import torch

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import reason, shown


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
