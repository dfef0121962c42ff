"""Does the reasoning look at the right places? Boxes in a text against annotated ones, by three published rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.spatial.box_matching import hungarian
from grpo_mm.rewards.spatial.box_reading import BoxReading, annotated_boxes
from grpo_mm.rewards.spatial.box_text import Form
from grpo_mm.rewards.spatial.boxes import ciou, dual_iou, iou, union_iou
from grpo_mm.types import Prompt


def spatial_grounding(boxes_R4: Tensor, references_W4: Tensor) -> float:
    """Sum of the complete IoU of matched boxes over max(R, W), in [0, 1]; 0 if one side is empty.

    Boxes are matched one to one so that the total complete IoU is largest; a matched pair below 0 then counts as 0.

    Source: FGRPO (arXiv:2604.08476), R_G. Grade B. Uncertain: the paper puts R_G into [0, 1] and does not say how, as
    complete IoU may be negative; here each term is cut at 0.
    """
    if 0 in (len(boxes_R4), len(references_W4)):
        return 0.0
    ciou_RW = ciou(boxes_R4, references_W4)
    total = sum(max(0.0, ciou_RW[pair].item()) for pair in hungarian(ciou_RW))
    return total / max(ciou_RW.shape)


@dataclass(frozen=True)
class BoxGrounding(BoxReading):
    """Base of the rewards below: NaN for a prompt without annotated boxes, 0 for a text without boxes.

    Parts of each: "parse_failed" (1 where no box was found) and "boxes" (their number).
    """

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each.

        Raises:
            ValueError: the target lacks a size that the coordinates need.
        """
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "parse_failed", "boxes", *self.part_names))

    @property
    def part_names(self) -> tuple[str, ...]:
        return ()

    def score(self, boxes_R4: Tensor, references_W4: Tensor) -> dict[str, float]:
        raise NotImplementedError

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        boxes_R4 = self.read(text, prompt)
        values = self.score(boxes_R4, annotated_boxes(prompt))
        return {**values, "parse_failed": float(len(boxes_R4) == 0), "boxes": float(len(boxes_R4))}


@dataclass(frozen=True)
class SpatialGrounding(BoxGrounding):
    """score = `spatial_grounding` of the <bbox> elements in the reasoning. Part: "best_iou", the mean over references.

    Deviates: boxes that nearly coincide count once (`merge_iou`), which the paper does not mention.
    """

    form: Form = "element"
    """How boxes are written: brackets, element, json, integers; see `parse_boxes`."""
    tag: str | None = "think"
    """The element that is read; null: the entire text."""

    @property
    def part_names(self) -> tuple[str, ...]:
        return ("best_iou",)

    def score(self, boxes_R4: Tensor, references_W4: Tensor) -> dict[str, float]:
        best = iou(boxes_R4, references_W4).amax(dim=0).mean().item() if len(boxes_R4) else 0.0
        return {"score": spatial_grounding(boxes_R4, references_W4), "best_iou": best}


@dataclass(frozen=True)
class DualBoxIou(BoxGrounding):
    """score = (recall + precision) / 2 by `dual_iou` of the <box> elements in the reasoning; both are parts.

    Trap: recall alone (`precision_weight: 0`) is won by naming boxes without end; the paper's run of that scored 0 answers.

    Deviates: boxes that nearly coincide count once (`merge_iou`), which the paper does not mention.
    """

    form: Form = "element"
    """How boxes are written: brackets, element, json, integers; see `parse_boxes`."""
    tag: str | None = "think"
    """The element that is read; null: the entire text."""
    precision_weight: float = 0.5
    """Of the two, which add up to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.precision_weight <= 1:
            raise ConfigError(f"precision_weight = {self.precision_weight}; wanted from 0 to 1.")

    @property
    def part_names(self) -> tuple[str, ...]:
        return ("recall", "precision")

    def score(self, boxes_R4: Tensor, references_W4: Tensor) -> dict[str, float]:
        recall, precision, _ = dual_iou(boxes_R4, references_W4)
        score = self.precision_weight * precision + (1 - self.precision_weight) * recall
        return {"score": score, "recall": recall, "precision": precision}


@dataclass(frozen=True)
class UnionBoxIou(BoxGrounding):
    """score = `union_iou` of all boxes of the text: GRIT's figure of grounding, not one of its rewards."""

    form: Form = "integers"
    """How boxes are written: brackets, element, json, integers; see `parse_boxes`."""

    def score(self, boxes_R4: Tensor, references_W4: Tensor) -> dict[str, float]:
        return {"score": union_iou(boxes_R4, references_W4)}
