"""Are the listed boxes right, and is the model sure of the right ones? The detection reward of Visual-RFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.spatial.box_matching import greedy_by_confidence
from grpo_mm.rewards.spatial.box_reading import BoxReading, annotated_boxes
from grpo_mm.rewards.spatial.box_text import Form
from grpo_mm.rewards.spatial.boxes import iou
from grpo_mm.types import Prompt

Version = Literal["first", "second"]


def detection_rewards(
    iou_RW: Tensor, confidence_R: Tensor, *, version: Version = "second", threshold: float = 0.5
) -> tuple[float, float]:
    """(R_IoU, R_conf), each in [0, 1]; zeros without boxes.

    Boxes from the most confident on take the free reference of the best IoU, if it is above the threshold. R_IoU is the sum
    of the IoU of pairs over max(R, W), in the first version over R; R_conf the mean over boxes of the confidence of those in
    a pair and 1 - confidence of the others.

    Source: Visual-RFT (arXiv:2503.01785), repository. Grade A. Deviates: a confidence is put into [0, 1] before it counts,
    where the repository cuts the mean; the first version trained with recall not asked for: one sure box earns all.
    """
    rows, columns = iou_RW.shape
    if rows == 0:
        return 0.0, 0.0
    confidence_R = confidence_R.clamp(0, 1)
    pairs = greedy_by_confidence(iou_RW, confidence_R, threshold=threshold)
    total = sum(iou_RW[pair].item() for pair in pairs)
    is_matched_R = torch.zeros(rows, dtype=torch.bool)
    is_matched_R[[box for box, _ in pairs]] = True
    sure = torch.where(is_matched_R, confidence_R, 1 - confidence_R).mean().item()
    return total / (rows if version == "first" else max(rows, columns)), sure


@dataclass(frozen=True)
class DetectionConfidence(BoxReading):
    """score = R_IoU + R_conf by `detection_rewards`, up to 2, of objects with a position and a confidence in the answer.

    Parts: "iou", "confidence" and "boxes". An object without a confidence is left out. The weight of the form is that of
    another reward, see `tag_format`.
    """

    version: Version = "second"
    """first: R_IoU over the boxes named; second: over the larger of named and annotated."""
    form: Form = "json"
    """How boxes are written: brackets, element, json, integers; see `parse_boxes`."""
    tag: str | None = "answer"
    """The element that is read; null: the entire text."""
    merge_iou: float | None = 1.0
    """Exact duplicates are dropped whatever is said here, as in the repository; below 1 near ones too."""
    threshold: float = 0.5
    """Above it, not at it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in get_args(Version):
            raise ConfigError(f"version = {self.version!r}; wanted first or second.")

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt without boxes. Raises ValueError: a size is missing."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "iou", "confidence", "boxes"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        found = list({one.box: one for one in reversed(self.found(text)) if one.confidence is not None}.values())[::-1]
        iou_RW = iou(self.in_pixels(found, prompt), annotated_boxes(prompt))
        confidence_R = torch.tensor([one.confidence for one in found], dtype=torch.float64)
        position, sure = detection_rewards(iou_RW, confidence_R, version=self.version, threshold=self.threshold)
        return {"score": position + sure, "iou": position, "confidence": sure, "boxes": float(len(found))}
