"""Parts of a picture that are clear, where Pillow's own account of them differs from what viewers show."""

from __future__ import annotations

from typing import IO, Any

GREY_STEP = {"L;2": 85, "L;4": 17}
"""Pillow spreads grey of few bits over 0 to 255, but not the grey that a PNG names as clear."""


def load_with_clear(picture: Any, file: IO[bytes] | None = None) -> None:
    """Loads a PIL picture, after which its clear parts are known by its alpha or by the value that it names.

    A PNG's clear colour is compared with all of its bits, and around the first frame of a GIF that does not fill its screen
    nothing is shown, as in browsers.

    Args:
        file: which the picture comes from; without it a clear colour of 16 bits a channel is compared by its upper 8.
    """
    tile = picture.tile[0] if getattr(picture, "tile", None) else None
    named = picture.info.get("transparency")
    if tile is None or picture.format not in ("PNG", "GIF"):
        picture.load()
        return
    if picture.format == "PNG" and isinstance(named, int) and tile.args in GREY_STEP:
        step = GREY_STEP[tile.args]
        picture.info["transparency"] = named % (255 // step + 1) * step
    picture.load()
    if picture.format == "PNG" and isinstance(named, tuple) and tile.args == "RGB;16B" and file is not None:
        picture.putalpha(_unless(picture, file, named))
        picture.info.pop("transparency", None)
    if picture.format == "GIF" and named is None and picture.tell() == 0 and tile.extents != (0, 0, *picture.size):
        picture.putalpha(_only(picture.size, tile.extents))


def _unless(picture: Any, file: IO[bytes], named: tuple[int, ...]) -> Any:
    """The mask of an RGB picture of 16 bits a channel: 0 where it has the named colour."""
    import numpy as np
    from PIL import Image

    file.seek(0)
    with Image.open(file, formats=("PNG",)) as lower:
        lower.tile = [part._replace(args="RGB;16L") for part in lower.tile]  # of two bytes the second
        value_HWC = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(lower)
    return Image.fromarray(np.where((value_HWC == named).all(-1), 0, 255).astype(np.uint8))


def _only(size: tuple[int, int], box: tuple[int, int, int, int]) -> Any:
    from PIL import Image

    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask
