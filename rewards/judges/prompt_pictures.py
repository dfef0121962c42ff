"""The pictures of a prompt, for a judge that is to see what the policy saw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpo_mm.types import Prompt


def pictures_of(prompt: Prompt, media: Any, *, most: int) -> tuple[Tensor, ...]:
    """uint8 [3, H, W] each, in the order of the prompt's media; of a video, frames that are evenly spread.

    Args:
        media: opens what stands in `Prompt.media` (`load(item)`).
        most: pictures of one video; still pictures all count.

    Raises:
        ValueError, OSError: something that cannot be opened, or is no picture.
    """
    found: list[Tensor] = []
    for item in prompt.media:
        opened = _open(media, item)
        if hasattr(opened, "frames_FCHW"):
            frames_FCHW = torch.as_tensor(opened.frames_FCHW)
            kept = min(most, len(frames_FCHW))
            found.extend(frames_FCHW[torch.linspace(0, len(frames_FCHW) - 1, kept).round().long()].unbind())
        else:
            found.append(_picture(opened))
    return tuple(found)


def _open(media: Any, item: Any) -> Any:
    """Media that were altered for the policy are altered for the judge."""
    return item.alter(_open(media, item.item)) if hasattr(item, "alter") else media.load(item)


def _picture(opened: Any) -> Tensor:
    if hasattr(opened, "convert"):
        import numpy as np

        if opened.mode != "RGB":
            raise ValueError(
                f"the media gave a picture of mode {opened.mode}; wanted RGB (transparency on white, upright)."
            )
        return torch.from_numpy(np.array(opened)).permute(2, 0, 1).contiguous()
    picture = torch.as_tensor(opened)
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(f"a picture of shape {tuple(picture.shape)} and type {picture.dtype}; wanted uint8 [3, H, W].")
    return picture
