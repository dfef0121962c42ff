"""The LAION aesthetic predictor: how pretty would people call this picture, 1 to 10?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from grpo_mm.identity import FREE
from grpo_mm.rewards.images.clip_score import Clip, check_clip
from grpo_mm.rewards.shared.network_sizes import network_bytes
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.weights import check_file, load_strictly, read_tensors
from grpo_mm.types import Prompt


@dataclass
class Aesthetic(Network):
    """score = a linear network on the picture's CLIP features of length 1; about 4 to 7 for most pictures.

    Source: improved-aesthetic-predictor by C. Schuhmann (simple_inference.py; version 2, sac+logos+ava1-l14-linearMSE),
    the reward of DDPO (arXiv:2305.13301) and Flow-GRPO.
    """

    goldens: ClassVar[str] = "pictures"
    """What it is tried on (`grpo_mm/golden`)."""
    path: str = "hf-hub:trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
    """The head's weights: a file of tensors, here or on the hub. The default is the published file under another name."""
    model: str = "ViT-L-14-quickgelu"
    """As for `clip_score`. The name must say quickgelu: OpenAI's weights were trained with that activation."""
    pretrained: str | None = "openai"
    """A tag known to open_clip or a file with weights."""
    batch_size: int = field(default=32, metadata=FREE)
    """Pictures or texts in one forward; changes memory and speed, not the scores."""

    def network_bytes(self) -> int | None:
        """Of its weights; None where it is no published network whose size is known."""
        return network_bytes(self.model)

    def __post_init__(self) -> None:
        self._clip = Clip(self.model, self.pretrained)

    def check(self) -> None:
        """Raises ConfigError if open_clip or a local file is missing."""
        check_clip(self.model, self.pretrained)
        check_file("path", self.path)

    def to(self, device: torch.device | str) -> Aesthetic:
        """Loads the models at the first call; moves them between devices by phase."""
        self._clip.to(device)
        return super().to(device)

    @takes_pictures
    @torch.no_grad()
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] -> score [M]; prompts are not read."""
        self._load()
        return {"score": torch.cat([self._model(self._clip.image_features(c)) for c in items.split(self.batch_size)])}

    def _build(self) -> nn.Module:
        tensors = read_tensors(self.path)
        head = LinearHead(tensors["layers.0.weight"].shape[1] if "layers.0.weight" in tensors else 768)
        load_strictly(head, tensors, path=self.path)
        return head


class LinearHead(nn.Module):
    """Five linear layers with nothing but dropout between them, [M, width] -> [M].

    In evaluation mode it is one affine map; the layers stay apart because the published weights are.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).squeeze(-1)
