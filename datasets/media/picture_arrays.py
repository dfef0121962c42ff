"""Pictures that stand in a prompt as they lie in memory: arrays of any axes, and what Hugging Face datasets keep of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_mm.datasets.media.pictures import PictureError, as_shown, open_picture


def is_feature(item: Any) -> bool:
    """Whether it is {"bytes": …, "path": …}, as Hugging Face datasets hand out a picture that is not decoded."""
    return isinstance(item, Mapping) and bool(item) and set(item) <= {"bytes", "path"}


def open_feature(item: Mapping[str, Any]) -> Any:
    """The picture of `is_feature`, by its bytes where it has them, as `open_picture` gives it.

    Raises:
        PictureError: neither, or as `open_picture`.
    """
    source = item.get("bytes") or item.get("path")
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    if not isinstance(source, bytes | str):
        raise PictureError("a picture in memory", "has neither bytes nor a path")
    return open_picture(source)


def array_as_shown(item: Any) -> Any:
    """An array or tensor [H, W, 3], [H, W, 4], [H, W, 1] or [H, W] of uint8, or [H, W] of uint16, as a PIL picture in RGB.

    [3, H, W] comes back as it is, and so does what is no array of these; 3 rows are three channels.

    Raises:
        PictureError: as `as_shown`.
    """
    shape, kind = tuple(getattr(item, "shape", ())), str(getattr(item, "dtype", "")).removeprefix("torch.")
    is_grey = len(shape) == 2 and kind in ("uint8", "uint16")
    is_colour = len(shape) == 3 and shape[0] != 3 and shape[2] in (1, 3, 4) and kind == "uint8"
    if not (is_grey or is_colour) or not all(shape):
        return _straight(item)
    from PIL import Image

    array = np.ascontiguousarray(item.cpu().numpy() if hasattr(item, "cpu") else item)
    return as_shown(Image.fromarray(array[..., 0] if shape[2:] == (1,) else array))


def _straight(item: Any) -> Any:
    """An array that runs backwards in memory, which tensors cannot, in a copy."""
    return item.copy() if isinstance(item, np.ndarray) and any(stride < 0 for stride in item.strides) else item
