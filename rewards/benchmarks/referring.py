"""Referring expressions: is the box of a text the one that is meant?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.benchmarks.window_metrics import recall_at, shares
from grpo_mm.rewards.spatial.box_reading import BoxReading, annotated_boxes
from grpo_mm.rewards.spatial.boxes import iou
from grpo_mm.rewards.text.spans import Pick
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class ReferringBoxes(BoxReading):
    """ "acc_at_0.5", …, the share of texts whose box overlaps prompt.target["boxes"] by at least that IoU, "miou" and
    "parse_failed", in shares of 1. A prompt has one box.

    The settings of `BoxReading` say how boxes are written and in which coordinates. Source: RefCOCO, arXiv:1608.00272.
    """

    tag: str | None = "answer"
    """The element that is read; null: the entire text."""
    sources: tuple[str, ...] | None = None
    """Held-out prompts of these sources; None: of all that ask for one box."""
    thresholds: tuple[float, ...] = (0.5,)
    """IoU from which on a span or box counts, each with a figure of its own."""
    strict: bool = False
    """More than the threshold is wanted instead of at least it."""
    inclusive: bool = False
    """Corners are pixels that belong to the box, as in VLM-R1 (arXiv:2504.07615)."""
    pick: Pick = "first"
    """Which box of the text counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pick not in ("first", "last"):
            raise ConfigError(f"pick = {self.pick!r}; wanted first or last.")

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt asks for one box."""
        return len(annotated_boxes(prompt)) == 1 and prompt.target.get("benchmark") == "refcoco"

    def __call__(self, texts: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        boxes = [self.box(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        return shares(self.score(boxes, prompts))

    def box(self, text: str | None, prompt: Prompt) -> Tensor | None:
        """[1, 4] the box of a text in pixels of the original picture; None if there is none.

        Raises:
            ValueError: the target lacks a size that the coordinates need.
        """
        boxes = () if text is None else self.read(text, prompt)
        if len(boxes) == 0:
            return None
        return boxes[:1] if self.pick == "first" else boxes[-1:]

    def score(self, predictions: Sequence[Tensor | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Figures in per cent of a box [1, 4] per prompt, and "queries", their number."""
        if not prompts:
            raise ValueError("no expressions; wanted at least one.")
        iou_N = np.array([self._iou(own, prompt) for own, prompt in zip(predictions, prompts, strict=True)])
        counts = {
            "parse_failed": 100 * float(np.mean([own is None for own in predictions])),
            "queries": float(len(iou_N)),
        }
        reached = recall_at(iou_N, self.thresholds, strict=self.strict, name="acc")
        return {**reached, "miou": 100 * float(iou_N.mean()), **counts}

    def _iou(self, own: Tensor | None, prompt: Prompt) -> float:
        return 0.0 if own is None else iou(own, annotated_boxes(prompt), inclusive=self.inclusive).item()
