"""How the boxes of a text become boxes in the picture: the settings that the rewards on boxes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.tags import tagged_text
from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.rewards.spatial.box_coordinates import Coordinates, to_pixels
from grpo_mm.rewards.spatial.box_text import Form, FoundBox, ReversedCorners, parse_boxes, tidied
from grpo_mm.rewards.spatial.boxes import as_boxes
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class BoxReading:
    """Reads the boxes of a text, and prompt.target["boxes"] beside them, both in pixels of the original picture.

    A box that is empty, or lies outside of the picture, stays: it counts as a prediction that meets nothing.
    """

    form: Form = "brackets"
    """How boxes are written, see `parse_boxes`."""
    tag: str | None = None
    """The element that is read; None: the entire text. Without the element, the entire text."""
    require_tag: bool = False
    """A text without the element has no box."""
    coordinates: Coordinates = "absolute"
    """What the model writes, see `box_coordinates`: of the model, not of the data."""
    reversed_corners: ReversedCorners = "sort"
    """A box whose second corner comes first is put in order (sort), or does not count (reject)."""
    merge_iou: float | None = 0.95
    """Boxes above this IoU are one; null keeps all."""
    most: int = 100
    """Boxes after the first so many are not read."""

    def __post_init__(self) -> None:
        choices = {"form": Form, "coordinates": Coordinates, "reversed_corners": ReversedCorners}
        for name, wanted in choices.items():
            if getattr(self, name) not in get_args(wanted):
                raise ConfigError(f"{name} = {getattr(self, name)!r}; wanted one of {', '.join(get_args(wanted))}.")
        if self.most < 1 or (self.merge_iou is not None and not 0 < self.merge_iou <= 1):
            raise ConfigError(
                f"most = {self.most}, merge_iou = {self.merge_iou}; wanted at least 1, and null or above 0 to 1."
            )

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has annotated boxes."""
        return len(target_of(prompt).get("boxes") or ()) > 0

    def found(self, text: str) -> list[FoundBox]:
        """The boxes of a text in the model's coordinates."""
        inner = tagged_text(text, self.tag, require_tag=self.require_tag)
        boxes = parse_boxes(inner, form=self.form, most=self.most)
        return tidied(boxes, reversed_corners=self.reversed_corners, merge_iou=self.merge_iou)

    def in_pixels(self, found: Sequence[FoundBox], prompt: Prompt) -> Tensor:
        """[R, 4] the same in pixels of the original picture. Raises ValueError: the target lacks a size that this needs."""
        return to_pixels(as_boxes([one.box for one in found]), self.coordinates, prompt)

    def read(self, text: str, prompt: Prompt) -> Tensor:
        """[R, 4] the boxes of a text in pixels of the original picture."""
        return self.in_pixels(self.found(text), prompt)


def annotated_boxes(prompt: Prompt) -> Tensor:
    """[W, 4] prompt.target["boxes"], in pixels of the original picture."""
    return as_boxes(target_of(prompt).get("boxes") or [])
