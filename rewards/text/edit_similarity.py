"""How many letters are wrong? One minus the normalised edit distance, for text that was to be read off a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.answers.writing import normal_form
from grpo_mm.rewards.shared.edit_distance import edit_distance
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.types import Prompt


def edit_similarity(prediction: str, answer: str) -> float:
    """1 - Levenshtein distance / length of the longer text, in [0, 1]; 1 for two empty texts. Symmetric, case counts.

    Both in `normal_form`, so that é in one part and in two are the same letter.
    """
    prediction, answer = normal_form(prediction), normal_form(answer)
    longer = max(len(prediction), len(answer))
    return 1 - edit_distance(prediction, answer) / longer if longer else 1.0


@dataclass(frozen=True)
class EditSimilarity:
    """score = `edit_similarity` of the stripped answer element and prompt.target["answer"]. Part: "parse_failed".

    Source: Perception-R1 (arXiv:2504.07954), OCR. Grade A. Uncertain: what the distance is divided by; here the longer text.
    """

    tag: str | None = None
    """The element that holds the text, without which nothing was read; None: all is the answer, as nothing is thought."""
    answer_types: tuple[str, ...] = ("ocr",)
    """It applies to prompts with such a target["answer_type"] and an answer."""

    def applies_to(self, prompt: Prompt) -> bool:
        target = target_of(prompt)
        kind = str(target.get("answer_type", "")).lower()
        return kind in self.answer_types and target.get("answer") not in (None, "")

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parse_failed, [M] each; NaN for a prompt to which it does not apply."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "parse_failed"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        given = text if self.tag is None else last_element(text, self.tag)
        if given is None:
            return {"score": 0.0, "parse_failed": 1.0}
        return {"score": edit_similarity(given.strip(), str(prompt.target["answer"]).strip()), "parse_failed": 0.0}
