"""How near does a number come? Mean relative accuracy: the share of tolerances, from loose to tight, that it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grpo_mm.rewards.answers.numbers import first_number, read_number
from grpo_mm.rewards.answers.tags import answer_text
from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.types import Prompt

__all__ = ["THRESHOLDS", "MeanRelativeAccuracy", "first_number", "mean_relative_accuracy"]

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""θ from 0.5 to 0.95: a relative error of at most 1 - θ is wanted."""


def mean_relative_accuracy(prediction: float, truth: float, *, tolerance: float | None = 1e-9) -> float:
    """Mean over θ = 0.5, 0.55, …, 0.95 of 1[|prediction - truth| / |truth| <= 1 - θ], in [0, 1].

    0 for a number that is infinite or NaN. A truth of 0 has no relative error: 1 if the prediction is 0 too, else 0.
    Deviates: the published scorer divides by the truth whatever it is, so that 0 for 0 is not right there.

    Args:
        tolerance: added to the right side, so that an error on the boundary counts: 8 for 10 gives 0.7. None copies the
            floating-point expression of the published scorer, by which it gives 0.6: for its figures, not to train.

    Source: VSI-Bench, arXiv:2412.14171. Grade A. Its scorer spaces the thresholds by numpy.linspace over
    int((0.95 - 0.5) / 0.05 + 2) = 10 points, and compares with <=.
    """
    if not (math.isfinite(prediction) and math.isfinite(truth)):
        return 0.0
    if truth == 0:
        return float(prediction == 0)
    error = abs(prediction - truth) / abs(truth)
    if tolerance is None:
        return float((error <= 1 - np.linspace(0.5, 0.95, int((0.95 - 0.5) / 0.05 + 2))).mean())
    return sum(error <= 1 - theta + tolerance for theta in THRESHOLDS) / len(THRESHOLDS)


@dataclass(frozen=True)
class MeanRelativeAccuracy:
    """score = `mean_relative_accuracy` of the number of the answer element, see `read_number`, and prompt.target["answer"].

    Part: "parse_failed" (1 where there is no number, or it is left open, which scores 0).
    """

    tag: str | None = "answer"
    """Without this element what follows the thinking is read; None: the entire text."""
    tolerance: float | None = 1e-9
    """Rounding that is forgiven on a boundary; null: none, as published."""
    answer_types: tuple[str, ...] = ("numerical", "regression")
    """It applies to prompts with such a target["answer_type"] whose answer is a number."""

    def applies_to(self, prompt: Prompt) -> bool:
        target = target_of(prompt)
        return target.get("answer_type") in self.answer_types and read_number(str(target.get("answer"))) is not None

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parse_failed, [M] each; NaN for a prompt to which it does not apply."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        score_M, failed_M = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).T
        return {"score": score_M, "parse_failed": failed_M}

    def _one(self, text: str, prompt: Prompt) -> tuple[float, float]:
        if not self.applies_to(prompt):
            return math.nan, math.nan
        number = read_number(answer_text(text, self.tag))
        if number is None:
            return 0.0, 1.0
        return mean_relative_accuracy(
            number, float(read_number(str(prompt.target["answer"]))), tolerance=self.tolerance
        ), 0.0
