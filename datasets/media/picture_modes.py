"""From the modes that Pillow knows to RGB: transparency on white, and numbers beyond 8 bits by their range."""

from __future__ import annotations

from typing import Any

import numpy as np

WHITE_IS_ZERO, PHOTOMETRIC = 0, 262
BITS = 258
SMALLEST, LARGEST = 340, 341
"""TIFF tags that say which sample is black and which is white."""


def to_rgb(picture: Any) -> Any:
    """A loaded PIL picture of any mode in RGB.

    Raises:
        ValueError: numbers outside of their range, not finite, or without a range that is known.
    """
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        return _on_white_if_named(picture, _by_range(picture))
    if picture.mode == "LAB":
        return _from_lab(picture)
    if picture.mode == "La":
        picture = picture.convert("LA")
    if not _see_through(picture):
        return picture.convert("RGB")
    named = picture.info.get("transparency")
    if isinstance(named, tuple) and max(named) > 255:  # of 16 bits a channel, which Pillow reads as 8
        picture = picture.copy()
        picture.info["transparency"] = tuple(value >> 8 for value in named)
    layers = picture.convert("RGBA")
    if layers.getextrema()[3][0] == 255:
        return layers.convert("RGB")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(layers)
    return ground.convert("RGB")


def _see_through(picture: Any) -> bool:
    if picture.mode == "P" and picture.palette is not None and picture.palette.mode == "RGBA":
        return True
    return picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info


def _by_range(picture: Any) -> np.ndarray:
    """[H, W] float64, 0 to 1."""
    value_HW = np.asarray(picture).astype(np.float64)
    low, high = _range(picture)
    if not np.isfinite(value_HW).all():
        raise ValueError("some of its numbers are NaN or infinite")
    least, most = float(value_HW.min()), float(value_HW.max())
    if least < low or most > high:
        raise ValueError(f"its numbers go from {least:g} to {most:g}, and its range is {low:g} to {high:g}")
    unit_HW = (value_HW - low) / (high - low)
    inverted = picture.format == "TIFF" and picture.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return 1 - unit_HW if inverted else unit_HW


def _range(picture: Any) -> tuple[float, float]:
    """What is black and what is white."""
    tags = getattr(picture, "tag_v2", {})
    if picture.mode in ("I", "F") and SMALLEST in tags and LARGEST in tags:
        low, high = (float(np.ravel(tags[tag])[0]) for tag in (SMALLEST, LARGEST))
        if not low < high:
            raise ValueError(f"its tags give a range from {low:g} to {high:g}")
        return low, high
    if picture.mode == "F":
        return 0.0, 1.0
    if picture.mode.startswith("I;16") or picture.format == "PPM":  # Pillow scales the latter to 16 bits
        return 0.0, 2.0 ** int(np.ravel(tags.get(BITS, 16))[0]) - 1
    raise ValueError(
        "whole numbers of 32 bits, or with a sign, whose range nothing tells; save it with 8 or 16 bits, or with the tags "
        "SMinSampleValue and SMaxSampleValue"
    )


def _on_white_if_named(picture: Any, unit_HW: np.ndarray) -> Any:
    """Grey in three channels; the value that a PNG names as transparent is white."""
    from PIL import Image

    grey_HW = np.rint(unit_HW * 255).astype(np.uint8)
    named = picture.info.get("transparency")
    if isinstance(named, int):
        grey_HW[np.asarray(picture) == named] = 255
    return Image.fromarray(grey_HW).convert("RGB")


def _from_lab(picture: Any) -> Any:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(picture, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))
