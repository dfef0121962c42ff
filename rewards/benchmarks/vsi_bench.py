"""VSI-Bench: letters for choices, mean relative accuracy for numbers, and the mean of its eight tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from grpo_mm.rewards.answers.choices import read_letter
from grpo_mm.rewards.answers.numbers import read_number
from grpo_mm.rewards.answers.tags import answer_text, tagged_text
from grpo_mm.rewards.benchmarks.spatial import ChoiceQuestions, mean
from grpo_mm.rewards.text.mean_relative_accuracy import mean_relative_accuracy
from grpo_mm.types import Prompt

DIRECTION = "object_rel_direction"
LEVELS = ("easy", "medium", "hard")
TASKS = 8


def vsi_bench_metrics(scores: Sequence[float], question_types: Sequence[str]) -> dict[str, float]:
    """Question type → mean score, "object_rel_direction", the mean of its levels, and "overall", the mean of the tasks.

    The three levels of direction count as one task in "overall". All in the unit of `scores`.
    """
    rows: dict[str, list[float]] = {}
    for score, kind in zip(scores, question_types, strict=True):
        rows.setdefault(kind, []).append(score)
    by_type = {kind: mean(own) for kind, own in rows.items()}
    levels = [by_type[name] for level in LEVELS if (name := f"{DIRECTION}_{level}") in by_type]
    tasks = {kind: score for kind, score in by_type.items() if not kind.startswith(DIRECTION)}
    tasks |= {DIRECTION: mean(levels)} if levels else {}
    return {"overall": mean(list(tasks.values()))} | tasks | by_type


@dataclass(frozen=True)
class VsiBench(ChoiceQuestions):
    """`vsi_bench_metrics` of accuracies and mean relative accuracies, "tasks_share", how many of the eight tasks there are,
    and "parse_failed" (no letter, or no number), in shares of 1.

    Source: the scorer of arXiv:2412.14171. Grade A. It reads the first word of an output, without a full stop, and so does
    this, within the answer element.
    """

    official: bool = True
    """False: a letter or number is read wherever it stands ("(B)", "about 3 m"), and a relative error on a boundary
    counts, by a tolerance of 1e-9: as the rewards do. True copies reading and rounding of the published scorer."""

    benchmark: ClassVar[str] = "vsi_bench"

    def read(self, text: str | None, prompt: Prompt) -> str | None:
        """A letter, or a number as a text; None if there is none."""
        if text is None:
            return None
        choices = prompt.target.get("choices") or ()
        if self.official:
            word = (tagged_text(text, self.answer_tag).strip().split(maxsplit=1) or [""])[0].rstrip(".")
            is_letter = len(word) == 1 and word.isascii()
            found = (read_letter(word, choices) if is_letter else None) if choices else _number(word)
        else:
            inner = answer_text(text, self.answer_tag)
            found = read_letter(inner, choices) if choices else read_number(inner)
        return None if found is None else str(found)

    def score(self, predictions: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Figures in per cent of a letter, or a number as a text, per prompt, and "queries", their number."""
        if not prompts:
            raise ValueError("no questions; wanted at least one.")
        scores = [self._score(own, prompt) for own, prompt in zip(predictions, prompts, strict=True)]
        found = vsi_bench_metrics(scores, [prompt.target["question_type"] for prompt in prompts])
        tasks = sum(not name.startswith(f"{DIRECTION}_") for name in found) - 1
        found |= {"tasks_share": tasks / TASKS, "parse_failed": mean([own is None for own in predictions])}
        return {name: 100 * value for name, value in found.items()} | {"queries": float(len(prompts))}

    def _score(self, own: str | None, prompt: Prompt) -> float:
        answer = prompt.target["answer"]
        if own is None:
            return 0.0
        if prompt.target.get("choices"):
            return float(own == answer.strip("()").upper())
        tolerance = None if self.official else 1e-9
        return mean_relative_accuracy(float(own), float(answer), tolerance=tolerance)


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
