"""How far is each picture from the one most like it in its group? Falls to 0 where samples repeat each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.identity import FREE
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.weights import DType, check_model, check_packages
from grpo_mm.types import Prompt
from grpo_mm.weights.pretrained import load_model, load_other


def nearest_neighbour_distance(features_MD: Tensor, group_M: Tensor) -> Tensor:
    """1 - the cosine with the most similar other row of the group: 0 (a twin) to 2.

    Args:
        features_MD: [M, D] of any length.
        group_M: [M] ints, in any order.

    Returns:
        float32 [M] on the device of the features; NaN for a row that is alone in its group.

    Source: GARDO, arXiv:2512.24138 (diversity-aware advantage shaping); flow_grpo/stat_tracking.py of tinnerhrhe/GARDO.
    """
    unit_MD, group_M = F.normalize(features_MD.float(), dim=-1), group_M.to(features_MD.device)
    distance_M = unit_MD.new_full((len(unit_MD),), torch.nan)
    for group in group_M.unique():
        members = (group_M == group).nonzero()[:, 0]
        if len(members) > 1:
            cosine = (unit_MD[members] @ unit_MD[members].T).fill_diagonal_(-torch.inf)
            distance_M[members] = 1 - cosine.amax(1).clamp(-1, 1)
    return distance_M


@dataclass
class NearestNeighbour(Network):
    """score = `nearest_neighbour_distance` of the pictures' features within each group.

    Features are the class token of a self-supervised image model. With `model: null` they are the picture itself, grey
    at 0, averaged down to 16 × 16 px: layout and colour, no weights needed.

    Source: GARDO, arXiv:2512.24138, with DINOv3 ViT-L/16. Deviates from its released code, which averages the patch
    tokens and does not bring features to length 1 before it takes products.
    """

    scope: ClassVar[str] = "set"

    model: str | None = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    """An image model in transformers' format with an image processor: a name on the hub or a local folder."""
    batch_size: int = field(default=32, metadata=FREE)
    dtype: DType = "float32"

    def check(self) -> None:
        """Raises ConfigError if transformers or a local folder is missing."""
        if self.model is not None:
            check_packages("transformers")
            check_model("model", self.model)

    @takes_pictures
    @torch.no_grad()
    def __call__(self, items: Tensor, prompts: Sequence[Prompt], group_M: Tensor) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and the group of each -> score [M]; prompts are not read."""
        features_MD = torch.cat([self.features(chunk) for chunk in items.split(self.batch_size)])
        return {"score": nearest_neighbour_distance(features_MD, group_M)}

    def features(self, images: Tensor) -> Tensor:
        """uint8 [M, 3, H, W] -> float32 [M, D]."""
        if self.model is None:
            return F.adaptive_avg_pool2d(images.to(self._device).float() / 255 - 0.5, 16).flatten(1)
        self._load()
        out = self._model(pixel_values=self.pixels(images).to(self._model.dtype))
        pooled = getattr(out, "pooler_output", None)
        return (out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)).float()

    def pixels(self, images: Tensor) -> Tensor:
        """What the model gets: the library's own preparation, on the model's device."""
        self._load()
        images = images.to(self._device)
        prepared = self._processor(images=list(images), input_data_format="channels_first", return_tensors="pt")
        return prepared["pixel_values"]

    def _load(self) -> None:
        if self.model is not None:
            super()._load()

    def _build(self) -> torch.nn.Module:
        from transformers import AutoImageProcessor, AutoModel

        self._processor = load_other(AutoImageProcessor, self.model)
        return load_model(AutoModel, self.model, dtype=getattr(torch, self.dtype))
