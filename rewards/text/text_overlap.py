"""How far do two texts share their words? BLEU of short word sequences, and token F1."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from grpo_mm.rewards.answers.writing import normal_form
from grpo_mm.types import Prompt


def words(text: str) -> list[str]:
    """Lower-case words and numbers in `normal_form`, without punctuation; a script without spaces is one word per run of letters."""
    return re.findall(r"\w+", normal_form(text).lower())


def bleu(candidate: Sequence[str], reference: Sequence[str], *, max_n: int = 2) -> float:
    """Geometric mean of the clipped n-gram precisions, n = 1..max_n, times the brevity penalty, in [0, 1].

    No smoothing: without a common n-gram of one order it is 0. Texts of fewer than max_n words are compared up to the length
    of the shorter one; two empty texts are equal (1). It is not symmetric.

    Source: BLEU of one sentence and one reference, with uniform weights (BLEU-1: max_n = 1, BLEU-2: max_n = 2).
    """
    if not candidate or not reference:
        return float(len(candidate) == len(reference))
    orders = range(1, min(max_n, len(candidate), len(reference)) + 1)
    precision = [_precision(candidate, reference, n) for n in orders]
    if min(precision) == 0:
        return 0.0
    brevity = min(1.0, math.exp(1 - len(reference) / len(candidate)))
    return brevity * math.exp(sum(map(math.log, precision)) / len(precision))


def _precision(candidate: Sequence[str], reference: Sequence[str], n: int) -> float:
    """The share of the candidate's n-grams that the reference has too, each as often as it is there."""
    own, other = (Counter(zip(*(text[i:] for i in range(n)))) for text in (candidate, reference))
    return sum((own & other).values()) / own.total()


def token_f1(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of words, with repetition, in [0, 1]; 0 without a common word."""
    common = (Counter(candidate) & Counter(reference)).total()
    return 2 * common / (len(candidate) + len(reference)) if common else 0.0


@dataclass(frozen=True)
class AnswerF1:
    """score = the best `token_f1` of a text with the reference answers: a text, a number or a list of them under `key` of the
    target."""

    key: str = "answer"
    """Name in the target of the reference answers."""

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """NaN for a prompt without a reference answer."""
        scores = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return {"score": torch.tensor(scores, dtype=torch.float64)}

    def _one(self, text: str, prompt: Prompt) -> float:
        answers = prompt.target.get(self.key) if isinstance(prompt.target, dict) else None
        answers = list(answers) if isinstance(answers, (list, tuple)) else [answers]
        told = [words(str(answer)) for answer in answers if answer is not None and answer != ""]
        return max((token_f1(words(text), answer) for answer in told), default=math.nan)
