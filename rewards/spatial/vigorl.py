"""Is each thought tied to a point of the picture? The single-turn reward of ViGoRL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.shared.prompt_target import choices_of, target_of
from grpo_mm.rewards.spatial.box_coordinates import Coordinates, to_pixels
from grpo_mm.rewards.spatial.box_reading import annotated_boxes
from grpo_mm.rewards.spatial.box_text import parse_points
from grpo_mm.rewards.spatial.boxes import as_boxes
from grpo_mm.rewards.text.tag_format import follows_template
from grpo_mm.rewards.text.typed_answer import answer_accuracy
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class Vigorl:
    """score = weight · accuracy + (1 - weight) · [the text follows its template and the thought names a point (x, y)].

    Accuracy is that of the answer's type, see `answer_accuracy`. A prompt without an answer but with annotated boxes wants a
    point in one of them (border included): the first point of the answer element. Parts: "accuracy", "format" and "points",
    the number of points in the thought.

    Source: ViGoRL (arXiv:2505.23678), grades A and B, single turn: 0.5 each. Its reward of several turns with crops is not
    here. Deviates: the elements stand once each, see `follows_template`.
    """

    weight: float = 0.5
    """Of the accuracy; the rest is the format's."""
    coordinates: Coordinates = "absolute"
    """Of a point in the answer, see `box_coordinates`. Points in the thought are only counted."""
    default_type: str = "multiple choice"
    """For prompts that name no "answer_type"."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"weight = {self.weight}; wanted from 0 to 1.")

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has an answer or annotated boxes."""
        target = target_of(prompt)
        return target.get("answer") not in (None, "") or len(target.get("boxes") or ()) > 0

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt to which it does not apply.

        Raises:
            ValueError: an unknown type of answer, or the target lacks a size that the coordinates need.
        """
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "accuracy", "format", "points"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        points = len(parse_points(last_element(text, "think") or ""))
        follows = float(points > 0 and follows_template(text, ("think", "answer")))
        accuracy = self._accuracy(last_element(text, "answer"), prompt)
        score = self.weight * accuracy + (1 - self.weight) * follows
        return {"score": score, "accuracy": accuracy, "format": follows, "points": float(points)}

    def _accuracy(self, given: str | None, prompt: Prompt) -> float:
        if given is None:
            return 0.0
        answer = prompt.target.get("answer")
        if answer not in (None, ""):
            kind = prompt.target.get("answer_type") or self.default_type
            return answer_accuracy(given, answer, kind, choices_of(prompt))
        points = parse_points(given)
        return point_in_boxes(points[0], self.coordinates, prompt) if points else 0.0


def point_in_boxes(point: tuple[float, float], coordinates: Coordinates, prompt: Prompt) -> float:
    """1 if the point lies in an annotated box, borders included, else 0. Raises ValueError: the target lacks a size."""
    x, y = to_pixels(as_boxes([[*point, *point]]), coordinates, prompt)[0, :2]
    x1, y1, x2, y2 = annotated_boxes(prompt).unbind(dim=-1)
    return float(((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)).any())
