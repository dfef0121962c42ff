"""What was drawn as a file: a picture as PNG, without loss; a clip as it plays in a browser."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from grpo_mm.looking.clips.video_file import ENDINGS, ending, write_clip
from grpo_mm.types import Clip, Clips

DRAWN = (".png", *ENDINGS)
"""Endings of such files."""


def drawn_ending(items: object) -> str:
    """Of what is drawn: ".png" for pictures; for clips ".mp4", or ".webp" where nothing here encodes H.264."""
    return ending() if isinstance(items, Clips) else ".png"


def write_drawn(item: Tensor | Clip, path: Path) -> None:
    """A picture, uint8 [3, H, W], or a clip in its size, with every frame of it at its rate; `path` ends as `drawn_ending` says."""
    from PIL import Image

    if isinstance(item, Clip):
        write_clip(path, item)
    else:
        Image.fromarray(item.permute(1, 2, 0).cpu().numpy()).save(path)
