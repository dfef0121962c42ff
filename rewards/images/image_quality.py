"""Plain statistics of pictures: a watch on what a reward does to them, not a reward to train on.

Blank backgrounds, grids and grain, the usual ways in which rewards are hacked, show here before they show elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpo_mm.identity import FREE
from grpo_mm.looking.image_statistics import image_statistics
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.types import Prompt


@dataclass
class ImageQuality:
    """score = sharpness; the parts are those of `image_statistics`. Meant for a reward of weight 0."""

    edge_threshold: float = 0.1
    batch_size: int = field(default=32, metadata=FREE)

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] -> score and parts, [M] each; prompts are not read."""
        chunks = [image_statistics(c, edge_threshold=self.edge_threshold) for c in items.split(self.batch_size)]
        parts = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        return {"score": parts["sharpness"], **parts}
