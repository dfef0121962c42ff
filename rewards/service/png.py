"""Pictures as base64 of PNG, and back: lossless, and nothing is decoded before its size is known to be allowed."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import reason, shown

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels -> what a picture of so many is called."""


class Refused(UserError):
    """What cannot be sent, or cannot be read as what was sent: it is named."""


class Pixels:
    """How many may still be decoded of one request."""

    def __init__(self, *, picture: int, whole: int) -> None:
        """picture: of one; whole: of all together."""
        self.picture, self.left = picture, whole

    def take(self, width: int, height: int, where: str) -> None:
        """Raises Refused for a picture, or all of them together, of more pixels than are allowed."""
        if width * height > self.picture:
            raise Refused(f"{where} is a picture of {width} × {height}; wanted at most {self.picture} pixels.")
        self.left -= width * height
        if self.left < 0:
            raise Refused(
                f"{where}: the pictures of one request have more pixels than are allowed together; send fewer rows."
            )


def png_of(picture_CHW: Any, where: str) -> str:
    """Base64 of a uint8 picture [C, H, W] of 1, 3 or 4 channels; raises Refused for anything else."""
    from PIL import Image

    if not isinstance(picture_CHW, Tensor):
        raise Refused(f"{where} is {shown(picture_CHW, 80)}, which cannot be sent; wanted uint8 [3, H, W].")
    shape = tuple(picture_CHW.shape)
    if picture_CHW.dtype != torch.uint8 or len(shape) != 3 or shape[0] not in MODES or not all(shape):
        raise Refused(
            f"{where} is a tensor {list(shape)} of {picture_CHW.dtype}, which cannot be sent; wanted uint8 [3, H, W]."
        )
    array = picture_CHW.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    return png_of_image(Image.fromarray(array[:, :, 0] if shape[0] == 1 else array), where)


def png_of_image(image: Any, where: str) -> str:
    """Base64 of a PIL picture; raises Refused for one of another mode than L, RGB and RGBA, or without pixels."""
    if image.mode not in MODES.values() or not all(image.size):
        raise Refused(
            f"{where} is a picture of mode {image.mode} and size {image.size}, which cannot be sent; wanted RGB, RGBA or L."
        )
    buffer = io.BytesIO()
    plain = image.copy()
    plain.info = {}  # texts and profiles are no pixels
    plain.save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def image_of(text: Any, pixels: Pixels, where: str) -> Any:
    """The PIL picture; raises Refused for what is no PNG of an allowed size, or is damaged."""
    from PIL import Image

    if not isinstance(text, str):
        raise Refused(f"{where} is {shown(text, 80)}; wanted base64 of a PNG.")
    try:
        data = base64.b64decode(text, validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `pixels` is stricter
            image = Image.open(io.BytesIO(data), formats=("PNG",))
        pixels.take(*image.size, where)
        if image.mode not in MODES.values():
            raise Refused(f"{where} is a PNG of mode {image.mode}; wanted RGB, RGBA or L.")
        image.load()
    except Refused:
        raise
    except (binascii.Error, ValueError, OSError, SyntaxError, EOFError, IndexError, OverflowError) as error:
        raise Refused(f"{where} cannot be read as base64 of a PNG ({reason(error, 100)}).") from error
    except Image.DecompressionBombError as error:
        raise Refused(f"{where} is too large a picture ({reason(error, 100)}).") from error
    except Exception as error:  # a decoder of damaged bytes: zlib, struct
        raise Refused(f"{where} is a damaged PNG ({reason(error, 100)}).") from error
    image.info = {}
    return image


def picture_of(text: Any, pixels: Pixels, where: str) -> Tensor:
    """uint8 [C, H, W], contiguous; raises Refused as `image_of`."""
    import numpy as np

    array = np.array(image_of(text, pixels, where))
    return torch.from_numpy(array[:, :, None] if array.ndim == 2 else array).permute(2, 0, 1).contiguous()
