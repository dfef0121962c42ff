"""From the coordinates a model writes to pixels of the original picture, once, before anything is scored.

The sizes travel with the row, in `prompt.target`: "width" and "height" of the original picture, in whose pixels annotated
boxes are, and "resized_width" and "resized_height" of what the model saw, which the policy's processor decides.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.types import Prompt

Coordinates = Literal["absolute", "unit", "thousand"]
"""`absolute`: pixels of the resized picture (Qwen2.5-VL); `thousand`: 0 to 1000 (Qwen2-VL, Qwen3-VL, InternVL); `unit`: 0 to 1."""

MOST_BEYOND = 2.0
"""Of the size of the picture: what ends farther out is in other coordinates."""


def to_pixels(boxes_R4: Tensor, coordinates: Coordinates, prompt: Prompt) -> Tensor:
    """[R, 4] boxes in pixels of the original picture, clipped to it where its size is known.

    `absolute` without a resized size takes the picture as not resized. A box that is not finite becomes NaN throughout:
    clipped, it would cover the picture. So does one that begins within the picture and ends beyond twice its size (pixels: in
    width and height): it is written in other coordinates, such as pixels for shares, and clipped, it would be a box that nobody
    wrote.

    Raises:
        ValueError: a size is missing that the conversion needs, or is not above 0.
    """
    width, height = _size(prompt, "", needed=coordinates != "absolute")
    resized = _size(prompt, "resized_", needed=False)
    if coordinates == "absolute":
        if resized[0] and not width:
            raise ValueError(f"{prompt.id!r} has a resized size but no width and height; wanted both in the target.")
        seen_width, seen_height = resized if resized[0] else (width, height)
    else:
        seen_width = seen_height = 1.0 if coordinates == "unit" else 1000.0
    boxes_R4 = torch.where(boxes_R4.isfinite().all(dim=-1, keepdim=True), boxes_R4, torch.nan)
    if not width:
        return boxes_R4
    size = torch.tensor([width, height] * 2, dtype=torch.float64)
    seen = torch.tensor([seen_width, seen_height] * 2, dtype=torch.float64)
    low_R2, high_R2 = torch.minimum(boxes_R4[:, :2], boxes_R4[:, 2:]), torch.maximum(boxes_R4[:, :2], boxes_R4[:, 2:])
    beyond_R2 = high_R2 > MOST_BEYOND * seen[:2]
    is_beyond_R = beyond_R2.all(dim=-1) if coordinates == "absolute" else beyond_R2.any(dim=-1)
    is_foreign_R = (low_R2 < seen[:2]).all(dim=-1) & is_beyond_R
    return torch.where(is_foreign_R[:, None], torch.nan, torch.minimum((boxes_R4 * size / seen).clamp(min=0), size))


def _size(prompt: Prompt, prefix: str, *, needed: bool) -> tuple[float, float]:
    """Width and height; zeros if they are not in the target and not needed."""
    target = target_of(prompt)
    found = [target.get(f"{prefix}{name}") for name in ("width", "height")]
    if found == [None, None] and not needed:
        return 0.0, 0.0
    if not all(isinstance(value, int | float) and value > 0 for value in found):
        raise ValueError(
            f"{prompt.id!r}: target has {prefix}width = {found[0]!r} and {prefix}height = {found[1]!r}; wanted numbers above 0."
        )
    return float(found[0]), float(found[1])
