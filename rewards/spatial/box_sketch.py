"""What the report draws of a text that names boxes: where they lie in the picture, and where they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.rewards.spatial.box_reading import BoxReading
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class BoxSketch(BoxReading):
    """Boxes of an answer beside prompt.target["boxes"], in a picture of target["width"] × target["height"].

    It reads as the rewards do, so that what is drawn is what was scored: set `form`, `tag` and `coordinates` as there. Names
    are target["box_names"] and the labels that stand in JSON.
    """

    def truth(self, prompt: Prompt) -> dict[str, Any]:
        """The annotated boxes; the size of the picture where it is known."""
        target = target_of(prompt)
        size = [target.get("width"), target.get("height")]
        return {
            "size": None if None in size else size,
            "boxes": [list(box) for box in target.get("boxes") or ()],
            "names": list(target.get("box_names") or ()),
        }

    def __call__(self, prompt: Prompt, text: str) -> dict[str, Any]:
        """The boxes of the text in pixels of the original picture, those that are not finite left out."""
        found = self.found(text)
        pairs = zip(self.in_pixels(found, prompt).tolist(), (one.label for one in found))
        drawn = [(box, label) for box, label in pairs if all(value == value for value in box)]
        return {"boxes": [box for box, _ in drawn], "names": [label for _, label in drawn]}
