"""The picture before an edit, or the first frame of a clip to be made: the first of a prompt's media."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import reason, shown
from grpo_mm.types import Prompt


def source_of(prompt: Prompt) -> Tensor:
    """uint8 [3, H, W]; raises UserError where the prompt brings none, or one that cannot be opened."""
    if not prompt.media:
        raise UserError(f"prompt {shown(prompt.id)} brings no picture; an edit is judged beside its source.")
    return opened(prompt.media[0], where=f"prompt {shown(prompt.id)}: its picture")


def opened(medium: Any, *, where: str) -> Tensor:
    """A picture as a row brings it (what has `open()`, PIL, an array or a tensor [3, H, W], a path) as uint8 [3, H, W].

    Raises:
        UserError: it cannot be opened, or is no picture of whole numbers.
    """
    import numpy as np
    from PIL import Image

    try:
        if isinstance(medium, str):
            with Image.open(medium) as file:
                found: Any = file.convert("RGB")
        else:
            found = medium.open() if hasattr(medium, "open") and not hasattr(medium, "convert") else medium
        if hasattr(found, "convert"):
            return torch.from_numpy(np.array(found.convert("RGB"))).permute(2, 0, 1).contiguous()
        picture = torch.as_tensor(found)
    except Exception as error:  # a damaged file, or whatever a foreign medium raises
        raise UserError(f"{where} cannot be opened ({reason(error)}).") from error
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise UserError(f"{where} is {picture.dtype} {list(picture.shape)}; wanted uint8 [3, H, W].")
    return picture
