"""How well pictures compress: a reward that needs no model, to see whether a training set-up learns at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.types import Prompt


def jpeg_size_kb(image: Tensor, *, quality: int = 95) -> float:
    """Size of a uint8 picture [3, H, W] as JPEG, in thousands of bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, format="JPEG", quality=quality)
    return buffer.tell() / 1000


@dataclass
class JpegSize:
    """incompressible: score = size in kB; compressible: score = -size in kB / 500. The part size_kb is always the size.

    Source: DDPO, arXiv:2305.13301; the division by 500 is Flow-GRPO's, arXiv:2505.05470, flow_grpo/rewards.py.
    """

    goal: Literal["incompressible", "compressible"] = "incompressible"
    """Whether large files or small ones are wanted."""
    quality: int = 95
    """Of the JPEG encoder, 1 to 100."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality = {self.quality}, wanted 1 to 100.")

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] -> score [M], size_kb [M]; prompts are not read."""
        size_kb = torch.tensor([jpeg_size_kb(image, quality=self.quality) for image in items], dtype=torch.float32)
        return {"score": size_kb if self.goal == "incompressible" else -size_kb / 500, "size_kb": size_kb}
