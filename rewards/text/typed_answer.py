"""Is the answer right? Accuracy by the type of the answer, decided row by row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.choices import LETTERS, TRUTH, folded, named_letter, read_letter, read_truth
from grpo_mm.rewards.answers.numbers import has_decimals, whole_number
from grpo_mm.rewards.answers.tags import answer_text, last_element
from grpo_mm.rewards.answers.writing import normal_form
from grpo_mm.rewards.shared.edit_distance import edit_distance
from grpo_mm.rewards.shared.prompt_target import choices_of
from grpo_mm.rewards.text.math_answer import check_math_verify, same_math
from grpo_mm.rewards.text.short_answer import exact_form, same_short_answer
from grpo_mm.rewards.text.text_overlap import words
from grpo_mm.types import Prompt


def same_choice(prediction: str, answer: str, choices: Sequence[str] = ()) -> float:
    """1 if the texts are the same, or name the same option, or both say yes or both no, else 0.

    The option is that of `read_letter`, so what counts here counts in held-out scoring; a text in place of the letter needs
    the choices. Texts are compared without case, quotation marks around them and stops behind, so "Yes." is "yes".

    Source: exact match of Video-R1 (arXiv:2503.21776, grade A), after marks are stripped as in FGRPO (arXiv:2604.08476,
    grade B). Deviates: neither says that case counts for nothing; letters have none, and a capital is no other answer. Both
    compare texts, and know nothing of "**B**", "the answer is B" or "Yes, it is".
    """
    if folded(prediction) == folded(answer) != "":
        return 1.0
    if (letter := named_letter(answer)) is not None:
        return float(read_letter(prediction, choices or len(LETTERS)) == letter)
    truth = read_truth(answer) if folded(answer) in TRUTH else None
    return float(truth is not None and read_truth(prediction) is truth)


def same_number(prediction: str, answer: str) -> float:
    """1 if both or neither have a decimal sign and they agree to two decimals; 0 for what is no `whole_number`.

    Source: Video-R1 (arXiv:2503.21776). Grade A. Deviates: there any comma is dropped after it has counted as a decimal sign,
    so that "1,000" is not "1000", and "3,5" is 35; here a comma between groups of three digits is no decimal sign.
    """
    values = [whole_number(text) for text in (prediction, answer)]
    if None in values or has_decimals(prediction) != has_decimals(answer):
        return 0.0
    return float(round(values[0], 2) == round(values[1], 2))


def word_accuracy(prediction: str, answer: str) -> float:
    """1 - word error rate, cut at 0. Words are split at blanks and compared as written, in `normal_form`.

    The word error rate is the least number of inserted, dropped and replaced words, over the words of the answer.
    """
    own, other = normal_form(prediction).split(), normal_form(answer).split()
    if not other or len(own) >= 2 * len(other):  # then at least as many insertions as the answer has words
        return float(own == other)
    letter = {word: chr(i) for i, word in enumerate(dict.fromkeys([*own, *other]))}
    edits = edit_distance(*("".join(letter[word] for word in text) for text in (own, other)))
    return max(0.0, 1 - edits / len(other))


def rouge_n(prediction: Sequence[str], answer: Sequence[str], n: int) -> float:
    """F1 of the n-grams that both have, each as often as in both, in [0, 1]; 0 if one has none."""
    own, other = (Counter(zip(*(text[i:] for i in range(n)))) for text in (prediction, answer))
    shared = (own & other).total()
    return 2 * shared / (own.total() + other.total()) if shared else 0.0


def rouge_l(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, in [0, 1]; 0 if one has none."""
    shared = longest_common_subsequence(prediction, answer)
    return 2 * shared / (len(prediction) + len(answer)) if shared else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length. One big-integer step per word of `a`: bit j of the row is 0 where column j of the table goes up."""
    places: dict[str, int] = {}
    for j, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << j
    every = (1 << len(b)) - 1
    row = every
    for word in a:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & every
    return len(b) - row.bit_count()


def mean_rouge(prediction: str, answer: str) -> float:
    """The mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L over lower-case words, in [0, 1].

    Deviates: words are compared without stemming, as no stemmer is among our packages, so "runs" is not "run"; the
    published rewards stem. An answer of one word has no 2-grams, and at best 2/3.
    """
    own, other = words(prediction), words(answer)
    return (rouge_n(own, other, 1) + rouge_n(own, other, 2) + rouge_l(own, other)) / 3


def free_text(prediction: str, answer: str) -> float:
    """1 for the same words, else `mean_rouge`.

    Deviates from Video-R1: there the mean alone decides, so that a right answer of one word ("red") earns 2/3.
    """
    own, other = words(prediction), words(answer)
    return 1.0 if own and own == other else mean_rouge(prediction, answer)


def relative_closeness(prediction: str, answer: str) -> float:
    """1 - min(1, |error| / (|answer| + 1e-9)); 0 for what is no `whole_number`. 0 for 0 is right: 1."""
    own, other = whole_number(prediction), whole_number(answer)
    return 0.0 if own is None or other is None else 1 - min(1.0, abs(own - other) / (abs(other) + 1e-9))


ACCURACY: dict[str, Callable[[str, str], float]] = {
    "multiple choice": same_choice,
    "numerical": same_number,
    "ocr": word_accuracy,
    "free text": free_text,
    "regression": relative_closeness,
    "short answer": same_short_answer,
    "math": same_math,
}
"""Type of an answer → its rule (prediction, answer) -> [0, 1]. Source: Video-R1, arXiv:2503.21776; also GRPO-CARE. Grade A.
Ours: "short answer", "math", and 1 for the same words in a free text."""
_OTHER_NAMES = {
    "free-form": "free text",
    "mcq": "multiple choice",
    "short": "short answer",
    "exact": "short answer",
    "latex": "math",
}


def answer_accuracy(prediction: str, answer: str | float, answer_type: str, choices: Sequence[str] = ()) -> float:
    """1 where both texts are the same, else the rule of the type, in [0, 1].

    Upper and lower case of the type's name are alike; `choices`: see `same_choice`. Deviates from Video-R1: there an answer that is
    right to the letter earns less than 1 where the rule cannot read it, such as "about 3" of the type numerical.

    Raises:
        ValueError: an unknown type.
    """
    name = answer_type.strip().lower().replace("_", " ")
    rule = ACCURACY.get(_OTHER_NAMES.get(name, name))
    if rule is None:
        raise ValueError(f"answer_type = {answer_type!r}; wanted one of {', '.join(map(repr, ACCURACY))}.")
    if exact_form(prediction) == exact_form(str(answer)) != "":
        return 1.0
    return same_choice(prediction, str(answer), choices) if rule is same_choice else rule(prediction, str(answer))


@dataclass(frozen=True)
class TypedAnswer:
    """score = `answer_accuracy` of the last answer element against prompt.target["answer"], by target["answer_type"].

    Where several answers are right, as a list in "answer" or beside it in "accepted", the best of them counts.

    Part: "parse_failed" (1 where the element is missing). Deviates from Video-R1, which takes the type of the first row
    for all of a batch.
    """

    tag: str | None = "answer"
    """None: the entire text is the answer."""
    require_tag: bool = False
    """A text without the element scores 0; else what follows the thinking, or all of it, is taken for the answer."""
    default_type: str = "multiple choice"
    """For prompts that name none."""

    def __post_init__(self) -> None:
        if self.default_type not in ACCURACY:
            raise ConfigError(f"default_type = {self.default_type!r}; wanted one of {', '.join(map(repr, ACCURACY))}.")

    def check(self) -> None:
        """Raises UserError where answers of the type math are compared and math-verify is not installed."""
        if self.default_type == "math":
            check_math_verify()

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has an answer."""
        return bool(accepted_answers(prompt))

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parse_failed, [M] each; NaN for a prompt without an answer.

        Raises:
            ValueError: a prompt names an unknown type.
        """
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        score_M, failed_M = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).T
        return {"score": score_M, "parse_failed": failed_M}

    def _one(self, text: str, prompt: Prompt) -> tuple[float, float]:
        answers = accepted_answers(prompt)
        if not answers:
            return math.nan, math.nan
        given = text if self.tag is None else last_element(text, self.tag)
        kind = prompt.target.get("answer_type") or self.default_type
        if given is None and self.require_tag:
            return 0.0, 1.0
        said, choices = answer_text(text, self.tag), choices_of(prompt)
        return max(answer_accuracy(said, answer, kind, choices) for answer in answers), float(given is None)


def accepted_answers(prompt: Prompt) -> list[Any]:
    """All that is right of a prompt, each once: target["answer"], which may be a list, then target["accepted"]; [] if nothing is."""
    target = prompt.target if isinstance(prompt.target, Mapping) else {}
    found: list[Any] = []
    for value in (target.get("answer"), target.get("accepted")):
        for answer in value if isinstance(value, (list, tuple)) else [value]:
            if answer is not None and answer != "" and answer not in found:
                found.append(answer)
    return found
