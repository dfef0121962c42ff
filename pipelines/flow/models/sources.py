"""Pictures of a prompt as latents beside those that are drawn: which size they have, and where they stand in a condition.

They are tokens behind the drawn ones, told apart by their positions; the network's answer to them is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.family import GEOMETRY, Condition

Sources = Literal["as_pipeline", "as_output"]
AREA = 1024 * 1024
"""Pixels that plain pipelines bring a picture to, or down to, whatever they draw."""
SOURCES = "sources"
"""The entry of a condition with the latents of all pictures of a prompt, [n, T, channels of a token]."""


def area_of(sources: Sources, size: tuple[int, int]) -> int:
    """Pixels of a picture beside drawn ones of `size`: as the plain pipeline has it, or as many as are drawn."""
    return AREA if sources == "as_pipeline" else size[0] * size[1]


def resizing(size: tuple[int, int], *, only_smaller: bool = False) -> list[str]:
    """Lines of Python that bring a `picture` to as many pixels as are drawn, for model cards."""
    pixels = f"{size[0]} * {size[1]}"
    factor = f"({pixels} / (picture.width * picture.height)) ** 0.5"
    return [
        f"factor = {f'min(1, {factor})' if only_smaller else factor}  # as many pixels as are drawn, as in the run",
        "picture = picture.resize((int(picture.width * factor), int(picture.height * factor)), 1)",
    ]


def of_sources(tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The entries of a condition from [1, rows · columns, channels] of each picture, with its (rows, columns); none without pictures.

    The geometry stays on the CPU until the condition is moved: a network that is only counted has no numbers, and shapes all the same.
    """
    if not tokens:
        return {}
    flat = [side for grid in grids for side in grid]
    return {SOURCES: torch.cat(list(tokens), dim=1), GEOMETRY: torch.tensor([flat], dtype=torch.int64, device="cpu")}


def grids_of(condition: Condition) -> list[tuple[int, int]]:
    """(rows, columns) in tokens of each picture of these rows, which are alike."""
    if GEOMETRY not in condition:
        return []
    sides = condition[GEOMETRY][0].tolist()
    return [(rows, columns) for rows, columns in zip(sides[::2], sides[1::2]) if rows]


def with_sources(x: Tensor, condition: Condition) -> Tensor:
    """Latents [n, T, C] with those of the pictures behind them."""
    tokens = sum(rows * columns for rows, columns in grids_of(condition))
    return torch.cat([x, condition[SOURCES][:, :tokens].to(x.dtype)], dim=1) if tokens else x


@torch.no_grad()
def encoded(pipe: Any, pixels: Tensor) -> Tensor:
    """Latents of a picture as the pipeline has them, of pixels [1, 3, H, W] or [1, 3, 1, H, W] in -1..1: the mode, normalised."""
    return pipe._encode_vae_image(pixels.to(pipe.vae.device, pipe.vae.dtype), None)
