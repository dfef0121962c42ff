"""What stands on a sheet: pictures as they are, clips as rows of frames with the file that plays; and the pictures of prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.looking.clips.contact_sheet import contact_sheets
from grpo_mm.looking.clips.video_file import clip_bytes
from grpo_mm.source_picture import source_of
from grpo_mm.types import Clips, Prompt, shown_items

SOURCE_PX = 256
"""Of the longer side of a prompt's picture that is kept for a sheet."""
log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True, eq=False)
class Tiles:
    """M outputs for a sheet, small enough to be gathered."""

    images: Tensor
    """uint8 [M, 3, h, w]: pictures, or rows of frames."""
    films: list[bytes | None] | None
    """Of clips the file of each, None for one that came to nothing; None: these are pictures."""

    def __len__(self) -> int:
        return len(self.images)


def tiles_of(items: Any, *, max_px: int) -> Tiles:
    """max_px: of a clip's longer side in its file. A grey plate stands for what came to nothing."""
    if not isinstance(items, Clips):
        return Tiles(shown_items(items), None)
    films = [None if clip is None else clip_bytes(clip, max_px=max_px) for clip in items]
    return Tiles(contact_sheets(items), films)


def films_of(parts: Sequence[Tiles]) -> list[bytes | None] | None:
    """Of all ranks in their order; None: pictures."""
    if all(part.films is None for part in parts):
        return None
    return [film for part in parts for film in (part.films or [None] * len(part))]


def sources_of(prompts: Sequence[Prompt]) -> list[Tensor | None] | None:
    """The picture that each prompt brings, uint8 [3, h, w] of at most 256 px; None where no prompt brings one.

    One that cannot be opened is left out, which is logged once for each prompt.
    """
    found = [_small(prompt) if prompt.media else None for prompt in prompts]
    return found if any(prompt.media for prompt in prompts) else None


def _small(prompt: Prompt) -> Tensor | None:
    try:
        picture = source_of(prompt)
    except UserError as error:
        if prompt.id not in _told:
            _told.add(prompt.id)
            log.warning("a sheet is without a source: %s", error)
        return None
    shrink = SOURCE_PX / max(picture.shape[1:])
    if shrink >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * shrink)), max(1, round(picture.shape[2] * shrink)))
    small = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8)
