"""Is the object where the text says it is, frame by frame? The rewards of VideoChat-R1 on tracking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.rewards.spatial.box_text import strict_box_list
from grpo_mm.rewards.spatial.boxes import as_boxes, iou
from grpo_mm.rewards.text.tag_format import TEMPLATES, follows_template
from grpo_mm.types import Prompt

PARTS = ("score", "later", "parse_failed", "wrong_count")


def track_iou(boxes_F4: Tensor, references_F4: Tensor) -> Tensor:
    """[F] IoU of the box of each frame with the annotated one of the same frame; 0 for a box that is not valid."""
    return iou(boxes_F4, references_F4).diagonal()


@dataclass(frozen=True)
class BoxTrack:
    """score = mean IoU, over frames, of the boxes in the answer element with those of prompt.target["track"].

    The answer is a list of boxes and nothing else, see `strict_box_list`, in the coordinates of the target (shares of width and
    height). A list of more or fewer boxes than frames scores 0: no box could be told from another frame's.

    Parts: "later", the same without the first frame, whose box the prompt tells; "parse_failed", 1 without such a list;
    "wrong_count", 1 for a list of another length. "later" is NaN for a track of one box.

    Source: arXiv:2504.06958 (VideoChat-R1), code; grade A. Deviates: of several answer elements the last one counts, not the
    first; a reversed box scores 0, where a product of two negative sides would count as an area.
    """

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has an annotated track."""
        return len(target_of(prompt).get("track") or ()) > 0

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt without a track."""
        return table([self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)], PARTS)

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        references_F4 = as_boxes(prompt.target["track"])
        nothing = {"score": 0.0, "parse_failed": 0.0, "wrong_count": 0.0}
        nothing |= {"later": 0.0} if len(references_F4) > 1 else {}
        boxes = strict_box_list(last_element(text, "answer") or "")
        if boxes is None:
            return nothing | {"parse_failed": 1.0}
        if len(boxes) != len(references_F4):
            return nothing | {"wrong_count": 1.0}
        iou_F = track_iou(as_boxes(boxes), references_F4)
        found = nothing | {"score": iou_F.mean().item()}
        return found | ({"later": iou_F[1:].mean().item()} if len(iou_F) > 1 else {})


@dataclass(frozen=True)
class BoxTrackFormat:
    """score = 1 if the text follows the template and its answer is a list of as many boxes as the track has, else 0.

    Source: arXiv:2504.06958 (VideoChat-R1), code: think, answer, a list of eight lists of four. Grade A. Deviates as
    `follows_template` does; and the four have to be numbers.
    """

    template: Literal["answer", "think_answer"] = "think_answer"
    """Elements that a text is to consist of."""

    def __post_init__(self) -> None:
        if self.template not in ("answer", "think_answer"):
            raise ConfigError(f"template = {self.template!r}; wanted answer or think_answer.")

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has an annotated track."""
        return len(target_of(prompt).get("track") or ()) > 0

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score [M]; NaN for a prompt without a track."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score",))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        boxes = strict_box_list(last_element(text, "answer") or "")
        fits = boxes is not None and len(boxes) == len(prompt.target["track"])
        return {"score": float(fits and follows_template(text, TEMPLATES[self.template]))}
