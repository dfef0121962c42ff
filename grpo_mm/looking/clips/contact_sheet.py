"""Clips as pictures: some frames in a row, each with its time under it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from grpo_mm.looking.clips.video_file import fitted
from grpo_mm.types import Clip, evenly

FRAMES = 4
FRAME_PX = 128
"""Longer side of a frame in a row."""
GAP_PX, LINE_PX = 2, 14


def contact_sheets(clips: Sequence[Clip | None], *, frames: int = FRAMES) -> Tensor:
    """uint8 [M, 3, h, w], one size: each clip's frames in a row with their times; a grey plate for what is none.

    Clips of several sizes stand on plates as large as the largest row.
    """
    rows = [None if clip is None else contact_sheet(clip, frames=frames) for clip in clips]
    there = [row for row in rows if row is not None]
    height = max((row.shape[1] for row in there), default=FRAME_PX + LINE_PX)
    width = max((row.shape[2] for row in there), default=frames * (FRAME_PX + GAP_PX))
    plates = torch.full((len(rows), 3, height, width), 255, dtype=torch.uint8)
    for plate, row in zip(plates, rows):
        if row is None:
            plate.fill_(128)
        else:
            plate[:, : row.shape[1], : row.shape[2]] = row
    return plates


def one_size(parts: Sequence[Tensor]) -> Tensor:
    """Pictures [m, 3, h, w] of several sizes in one tensor, each on a white plate as large as the largest."""
    height, width = (max(part.shape[i] for part in parts) for i in (2, 3))
    return torch.cat([F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2]), value=255) for part in parts])


def contact_sheet(clip: Clip, *, frames: int = FRAMES) -> Tensor:
    """uint8 [3, h, w] of one clip."""
    chosen = evenly(len(clip.frames_FCHW), frames)
    small_FCHW = fitted(clip.frames_FCHW[chosen], FRAME_PX)
    padded = F.pad(small_FCHW, (0, GAP_PX, 0, 0), value=255)
    strip = padded.permute(1, 2, 0, 3).flatten(2)
    return torch.cat([strip, _times(chosen, clip.fps, padded.shape[3])], 1)


def _times(chosen: Sequence[int], fps: float, width: int) -> Tensor:
    """uint8 [3, LINE_PX, F · width]: the moment of each frame."""
    line = Image.new("L", (width * len(chosen), LINE_PX), 255)
    draw, font = ImageDraw.Draw(line), ImageFont.load_default()
    for place, number in enumerate(chosen):
        draw.text((place * width + 2, 1), f"{number / fps:.2f} s", fill=60, font=font)
    return torch.frombuffer(bytearray(line.tobytes()), dtype=torch.uint8).view(1, LINE_PX, -1).expand(3, -1, -1)
