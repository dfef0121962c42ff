"""Plain statistics of pictures: where blank backgrounds, grids and grain show before they show elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STATISTICS = ("luminance", "contrast", "sharpness", "saturation", "edge_density")

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LAPLACIAN = ((0, 1, 0), (1, -4, 1), (0, 1, 0))
_SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))


def image_statistics(images: Tensor, *, edge_threshold: float = 0.1) -> dict[str, Tensor]:
    """uint8 [M, 3, H, W] -> float32 [M] each, on the same device.

    luminance: mean, 0 to 1.
    contrast: standard deviation of luminance, 0 to 0.5.
    sharpness: variance of the Laplacian of luminance on the scale 0..255, as OpenCV users compute it; below about 100
        a photograph looks blurred, noise and grids go to thousands.
    saturation: mean of (max - min) / max over channels, 0 to 1.
    edge_density: share of pixels whose luminance (0 to 1) rises by more than `edge_threshold` per pixel (Sobel / 8).

    Raises:
        ValueError: pictures smaller than 3 × 3, or not of uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"pictures are {images.dtype}; wanted uint8: floats do not tell what is white.")
    if min(images.shape[2:]) < 3:
        raise ValueError(f"pictures of {tuple(images.shape[2:])} px have no 3 × 3 neighbourhood")
    rgb = images.float() / 255
    luma = (rgb * rgb.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    top, low = rgb.amax(1), rgb.amin(1)
    slope_x, slope_y = _filter(luma, _SOBEL) / 8, _filter(luma, tuple(zip(*_SOBEL))) / 8
    edges = (slope_x**2 + slope_y**2).sqrt() > edge_threshold
    return {
        "luminance": luma.mean((1, 2, 3)),
        "contrast": luma.std((1, 2, 3), correction=0),
        "sharpness": (255 * _filter(luma, _LAPLACIAN)).var((1, 2, 3), correction=0),
        "saturation": ((top - low) / top.clamp_min(1e-6)).mean((1, 2)),
        "edge_density": edges.float().mean((1, 2, 3)),
    }


QUARTERS = tuple(f"{place}_{tone}" for tone in ("red", "green", "blue") for place in ("upper_left", "upper_right", "lower_left", "lower_right"))  # fmt: skip


def quarters(images: Tensor) -> dict[str, Tensor]:
    """uint8 [M, 3, H, W] -> float32 [M] for each of QUARTERS: the mean of a channel in a quarter of the picture, 0 to 1.

    Twelve numbers that tell where a picture is light and of what colour, enough to see whether it is like others.
    """
    tone_MK = F.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
    return dict(zip(QUARTERS, tone_MK.unbind(1)))


def _filter(luma_M1HW: Tensor, kernel: Sequence[Sequence[int]]) -> Tensor:
    """Correlation with a 3 × 3 kernel at the pixels that have all their neighbours."""
    return F.conv2d(luma_M1HW, luma_M1HW.new_tensor(kernel)[None, None])
