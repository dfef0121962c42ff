"""Where a picture was to be edited: by a mask in the row, or by where the wanted picture differs from the source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.source_picture import opened, source_of
from grpo_mm.types import Prompt

MASK, EDITED = "mask", "edited_image"
"""Entries of a prompt's target: a picture that is light where it is to be edited; the picture that is wanted."""


def says_region(prompt: Prompt) -> bool:
    """Whether the row says where: it has a mask, or the wanted picture."""
    target = target_of(prompt)
    return target.get(MASK) is not None or target.get(EDITED) is not None


def wanted_picture(prompt: Prompt) -> Tensor | None:
    """uint8 [3, h, w], the picture that the row has for the result; None where it has none."""
    found = target_of(prompt).get(EDITED)
    return None if found is None else opened(found, where=f"prompt {prompt.id!r}: its {EDITED}")


def edited_region(prompt: Prompt, size: tuple[int, int], *, threshold: float, margin: float) -> Tensor | None:
    """bool [H, W], True where it is to be edited; None where the row does not say.

    Args:
        size: height and width of the result; mask, source and wanted picture are brought to it.
        threshold: of 0 to 1, the largest difference of a channel between source and wanted picture that is none.
        margin: of the shorter side, by which the region is made larger all round: edges and shadows change with what is edited.
    """
    target = target_of(prompt)
    if target.get(MASK) is not None:
        mask = opened(_as_colour(target[MASK]), where=f"prompt {prompt.id!r}: its {MASK}")
        region = sized(mask, size).float().amax(0) >= 128
    else:
        wanted = wanted_picture(prompt)
        if wanted is None:
            return None
        change = sized(wanted, size).float() - sized(source_of(prompt), size).float()
        region = change.abs().amax(0) > 255 * threshold
    reach = round(margin * min(size))
    if reach:
        region = F.max_pool2d(region[None, None].float(), 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
    return region


def _as_colour(mask: object) -> object:
    """A mask as an array [H, W] of bool or 0 to 255 becomes a picture; others are opened as pictures are."""
    if not hasattr(mask, "shape"):
        return mask
    array = torch.as_tensor(mask)
    if array.dtype == torch.bool:
        array = array.to(torch.uint8) * 255
    return array.expand(3, -1, -1) if array.ndim == 2 else array


def sized(picture_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, *size]: a picture stretched to a size, as pipelines that edit stretch what they are given."""
    if tuple(picture_CHW.shape[1:]) == tuple(size):
        return picture_CHW
    found = F.interpolate(picture_CHW[None].float(), tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return found[0].round().clamp(0, 255).to(torch.uint8)
