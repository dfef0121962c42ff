"""Is the one box of the answer where the expression refers to? The rewards of VLM-R1 on referring expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.spatial.box_reading import BoxReading, annotated_boxes
from grpo_mm.rewards.spatial.box_text import Form, parse_boxes
from grpo_mm.rewards.spatial.boxes import iou
from grpo_mm.rewards.text.tag_format import follows_template
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class ReferringBox(BoxReading):
    """score = IoU of the first box of the answer with the first of prompt.target["boxes"], in original pixels.

    Part: "parse_failed" (1 where there is no answer element or no box in it; the score is 0) and "acc_at_0.5" (IoU of at
    least 0.5, the figure of the benchmarks).

    Source: arXiv:2504.07615 (VLM-R1), repository. Grade A. Uncertain: it writes its IoU with + 1 on corners of which it took
    1 before, which is the continuous area (an overlap of one pixel or less counts as none); `inclusive` is the + 1 without
    that. Deviates: several answer elements have the last one count; coordinates need not be integers; a reversed box is put
    in order, see `reversed_corners`.
    """

    tag: str | None = "answer"
    """The element that is read; null: the entire text."""
    require_tag: bool = True
    """A text without the element has no span or box."""
    inclusive: bool = False
    """Corners are pixels that belong to the box, so that a side is one pixel longer."""

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt without a box. Raises ValueError: a size is missing."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "parse_failed", "acc_at_0.5"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        boxes_R4 = self.read(text, prompt)[:1]
        if len(boxes_R4) == 0:
            return {"score": 0.0, "parse_failed": 1.0, "acc_at_0.5": 0.0}
        value = iou(boxes_R4, annotated_boxes(prompt)[:1], inclusive=self.inclusive).item()
        return {"score": value, "parse_failed": 0.0, "acc_at_0.5": float(value >= 0.5)}


@dataclass(frozen=True)
class BoxAnswerFormat:
    """score = 1 if a think and an answer element stand in the text, and the answer has a box; else 0. For every prompt.

    Source: arXiv:2504.07615 (VLM-R1), repository. Grade A. Deviates: the elements stand once each with blanks between, see
    `follows_template`, and the box stands under its key where the repository wants a brace before and one after it.
    """

    form: Form = "json"
    """How boxes are written: brackets, element, json, integers; see `parse_boxes`."""

    def applies_to(self, prompt: Prompt) -> bool:
        return True

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score [M]; of the prompts only their number is read."""
        return table([{"score": float(self.follows(text))} for text, _ in zip(items, prompts, strict=True)], ("score",))

    def follows(self, text: str) -> bool:
        if not follows_template(text, ("think", "answer"), match="search"):
            return False
        return bool(parse_boxes(last_element(text, "answer") or "", form=self.form, most=1))
