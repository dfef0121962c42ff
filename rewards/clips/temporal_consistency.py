"""Does a clip keep its subject and its surroundings? Likeness of its frames' features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpo_mm.identity import FREE
from grpo_mm.rewards.images.picture_features import By, PictureFeatures
from grpo_mm.rewards.shared.clips import takes_clips
from grpo_mm.types import Clip, Prompt


def consistency(features_FD: Tensor, *, first: bool) -> float:
    """Mean cosine of each frame after the first with the frame before it, negative ones as 0; NaN of one frame.

    Args:
        features_FD: of length 1.
        first: each frame's cosine with the very first counts half, as in VBench: a slow drift shows.

    Source: subject consistency and background consistency of VBench, arXiv:2311.17982.
    """
    if len(features_FD) < 2:
        return torch.nan
    before = (features_FD[1:] * features_FD[:-1]).sum(-1).clamp_min(0)
    if not first:
        return float(before.mean())
    return float(((before + (features_FD[1:] @ features_FD[0]).clamp_min(0)) / 2).mean())


@dataclass
class TemporalConsistency:
    """score = `consistency` of the frames' features, 0 to 1: 1 of a still. The parts are `neighbours`, without the first frame, and
    `worst`, the lowest cosine with the frame before.

    A still has the highest score there is: reward motion_amount or what the prompt asks for beside it.

    Source: VBench, arXiv:2311.17982: subject consistency takes DINO, background consistency CLIP ViT-B/32 (by: clip, model:
    ViT-B-32-quickgelu, pretrained: openai). Deviates: DINOv2 stands for DINO, whose copies on the hub lack a head that is trained.
    """

    constant_steps: ClassVar[int] = 3
    """As of other networks."""
    by: By = "dino"
    """clip: open_clip's features; dino: the class token of a self-supervised model."""
    model: str | None = None
    """As `clip_score` takes it, or an image model in transformers' format; null: ViT-L-14-quickgelu, or facebook/dinov2-base."""
    pretrained: str | None = "openai"
    """Of clip: a tag known to open_clip or a file with weights."""
    against: Literal["neighbour", "first_and_neighbour"] = "first_and_neighbour"
    """What each frame is held against; the latter is VBench's."""
    batch_size: int = field(default=32, metadata=FREE)
    """Frames in one forward; changes memory and speed, not the scores."""

    def __post_init__(self) -> None:
        self._features = PictureFeatures(self.by, self.model, self.pretrained)

    def check(self) -> None:
        """Raises ConfigError if a package or a local file is missing."""
        self._features.check()

    def to(self, device: torch.device | str) -> TemporalConsistency:
        self._features.to(device)
        return self

    @takes_clips
    def __call__(self, items: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """`Clips` -> score, neighbours, worst, [M] each; prompts are not read. NaN of a clip of one frame."""
        found = []
        for clip in items:
            features_FD = self._features(clip.frames_FCHW, batch_size=self.batch_size)
            near = consistency(features_FD, first=False)
            both = consistency(features_FD, first=True) if self.against == "first_and_neighbour" else near
            worst = (features_FD[1:] * features_FD[:-1]).sum(-1).min() if len(features_FD) > 1 else torch.nan
            found.append((both, near, float(worst)))
        columns = torch.tensor(found, dtype=torch.float32).unbind(1)
        return dict(zip(("score", "neighbours", "worst"), columns))
