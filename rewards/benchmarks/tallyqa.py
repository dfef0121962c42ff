"""TallyQA: how often a count is right, and how far it is off, for simple and complex questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_mm.rewards.answers.numbers import read_count
from grpo_mm.rewards.answers.tags import answer_text
from grpo_mm.types import Prompt

LARGEST = 15
"""Counts of the data set are 0 to 15."""


def counting_metrics(counts: Sequence[float | None], truths: Sequence[int]) -> dict[str, float]:
    """ "accuracy" and "parse_failed" in per cent, "rmse" as a number of things, and "queries", a number.

    For the error a count is cut to 0..15, so that one absurd number does not hide all others; one that could not be read
    (None) is as far off as can be. Both are our choice: the published models choose among these numbers.

    Raises:
        ValueError: the lengths differ, or there is no question.
    """
    if len(counts) != len(truths) or not truths:
        raise ValueError(f"{len(counts)} counts for {len(truths)} questions; wanted one each, and at least one.")
    errors = [
        max(truth, LARGEST - truth) if own is None else min(max(own, 0.0), float(LARGEST)) - truth
        for own, truth in zip(counts, truths)
    ]
    return {
        "accuracy": 100 * sum(own == truth for own, truth in zip(counts, truths)) / len(truths),
        "rmse": math.sqrt(sum(error**2 for error in errors) / len(errors)),
        "parse_failed": 100 * sum(own is None for own in counts) / len(counts),
        "queries": float(len(truths)),
    }


@dataclass(frozen=True)
class TallyQa:
    """`counting_metrics` as "simple/accuracy", "simple/rmse", "complex/…", for questions that say which they are, and
    "all/…". Accuracies are shares of 1, "rmse" is a number of things: less is better.

    A number is read in digits, or in words up to twenty; a text with several numbers has none.

    Source: arXiv:1810.12440, exact accuracy and RMSE.
    """

    sources: tuple[str, ...] | None = None
    """Held-out prompts of these sources; None: of all that are of this benchmark."""
    answer_tag: str | None = "answer"
    """The element that holds the answer. A text without it is the answer from the end of its thinking on; None: always."""

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt is a question of this benchmark."""
        return isinstance(prompt.target, Mapping) and prompt.target.get("benchmark") == "tallyqa"

    def __call__(self, texts: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        found = self.score([self.read(text) for text in texts], prompts)
        kept = {name: value for name, value in found.items() if not name.endswith("queries")}
        return {name: value if name.endswith("rmse") else value / 100 for name, value in kept.items()}

    def read(self, text: str | None) -> float | None:
        """The number that a text says; None if it says none, or several."""
        return None if text is None else read_count(answer_text(text, self.answer_tag))

    def score(self, predictions: Sequence[float | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Figures in per cent, but for "rmse" and "queries", of a count per prompt."""
        result: dict[str, float] = {}
        for subset in ("simple", "complex", "all"):
            rows = [i for i, prompt in enumerate(prompts) if subset in ("all", prompt.target.get("task"))]
            if rows:
                truths = [int(prompts[i].target["answer"]) for i in rows]
                found = counting_metrics([predictions[i] for i in rows], truths)
                result |= {f"{subset}/{name}": value for name, value in found.items()}
        return result
