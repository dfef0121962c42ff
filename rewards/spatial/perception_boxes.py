"""Boxes without a thought before them: the rewards of Perception-R1 for grounding one thing and for detecting all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.spatial.box_matching import hungarian
from grpo_mm.rewards.spatial.box_reading import BoxReading, annotated_boxes
from grpo_mm.rewards.spatial.boxes import in_order, iou
from grpo_mm.types import Prompt

Task = Literal["grounding", "detection"]


def hungarian_f1(boxes_R4: Tensor, references_W4: Tensor, *, threshold: float = 0.5) -> tuple[float, float]:
    """(F1, mean IoU of the pairs that count), each in [0, 1]; zeros if there are none.

    Boxes are matched one to one so that the total IoU is largest; a pair counts from the threshold on. The order of the boxes
    has no part in it.
    """
    if 0 in (len(boxes_R4), len(references_W4)):
        return 0.0, 0.0
    iou_RW = iou(in_order(boxes_R4), in_order(references_W4))
    values = [iou_RW[pair].item() for pair in hungarian(iou_RW)]
    counted = [value for value in values if value >= threshold]
    if not counted:
        return 0.0, 0.0
    return 2 * len(counted) / sum(iou_RW.shape), sum(counted) / len(counted)


@dataclass(frozen=True)
class PerceptionBoxes(BoxReading):
    """`grounding`: score = IoU² of the first box with the only reference. `detection`: `hungarian_f1` of all boxes.

    Each applies to its rows: grounding to prompts with one annotated box, detection to those with any. Parts: "iou" (of the
    first box, or the mean of the pairs that count) and "parse_failed".

    Source: Perception-R1 (arXiv:2504.07954). Grade A for IoU². Uncertain: the released code has no detection reward; F1 after
    Hungarian matching is our reading of the paper, at IoU 0.5, and its shares of IoU and form are left to other rewards.
    """

    task: Task = "grounding"
    """Which of the two rewards."""
    threshold: float = 0.5
    """IoU from which on a matched pair counts, for detection."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in get_args(Task):
            raise ConfigError(f"task = {self.task!r}; wanted grounding or detection.")

    def applies_to(self, prompt: Prompt) -> bool:
        boxes = len(annotated_boxes(prompt))
        return boxes == 1 if self.task == "grounding" else boxes > 0

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt to which it does not apply. Raises ValueError: no size."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "iou", "parse_failed"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        boxes_R4, references_W4 = self.read(text, prompt), annotated_boxes(prompt)
        if len(boxes_R4) == 0:
            return {"score": 0.0, "iou": 0.0, "parse_failed": 1.0}
        if self.task == "grounding":
            value = iou(boxes_R4[:1], references_W4).item()
            return {"score": value**2, "iou": value, "parse_failed": 0.0}
        f1, mean_iou = hungarian_f1(boxes_R4, references_W4, threshold=self.threshold)
        return {"score": f1, "iou": mean_iou, "parse_failed": 0.0}
