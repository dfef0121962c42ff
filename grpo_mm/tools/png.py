"""Pictures and clips as PNG, without loss."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from grpo_mm.types import Clip


def write_png(item: Tensor | Clip, path: Path) -> None:
    """A picture, uint8 [3, H, W]; a clip becomes an animated PNG at its rate, which plays once and holds every frame."""
    from PIL import Image

    frames = item.frames_FCHW if isinstance(item, Clip) else item[None]
    first, *others = (Image.fromarray(frame.permute(1, 2, 0).cpu().numpy()) for frame in frames)
    if isinstance(item, Clip):
        first.save(path, save_all=True, append_images=others, duration=1000 / item.fps, loop=1, disposal=1, blend=0)
    else:
        first.save(path)
