"""Features of pictures by CLIP or by a self-supervised network, of length 1: what similarities of pictures are taken of."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.rewards.images.clip_score import Clip, check_clip
from grpo_mm.rewards.images.nearest_neighbour import NearestNeighbour

By = Literal["clip", "dino"]
MODELS: dict[str, str] = {"clip": "ViT-L-14-quickgelu", "dino": "facebook/dinov2-base"}
"""What is meant where a reward names no model."""


class PictureFeatures:
    """Loaded when first needed, moved between devices by phase."""

    def __init__(self, by: By, model: str | None, pretrained: str | None) -> None:
        """model: for clip as `clip_score` takes it, for dino an image model in transformers' format; None: MODELS."""
        self.by, self.model, self.pretrained = by, model or MODELS[by], pretrained
        self._network: Any = (
            Clip(self.model, pretrained) if by == "clip" else NearestNeighbour(model=self.model, dtype="float32")
        )

    def check(self) -> None:
        """Raises ConfigError if a package or a local file is missing."""
        if self.by == "clip":
            check_clip(self.model, self.pretrained)
        else:
            self._network.check()

    def to(self, device: torch.device | str) -> None:
        self._network.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch_size: int) -> Tensor:
        """uint8 [M, 3, H, W] -> float32 [M, D] on the CPU, of length 1."""
        read = self._network.image_features if self.by == "clip" else self._network.features
        found = [F.normalize(read(part).float(), dim=-1).cpu() for part in images.split(batch_size)]
        return torch.cat(found) if found else torch.zeros(0, 1)
