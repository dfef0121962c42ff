"""Benchmarks of seeing with options to choose from: CV-Bench, MMVP, BLINK, SAT and VSR.

N questions. An answer that could not be read is None: it counts as wrong and stays in the denominator. `score` gives figures
in per cent and "queries", a number; a call gives shares of 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.choices import LETTERS, read_letter, read_truth
from grpo_mm.rewards.answers.tags import answer_text
from grpo_mm.rewards.benchmarks.window_metrics import shares
from grpo_mm.types import Prompt


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def accuracy_by(right_N: Sequence[bool], key_N: Sequence[Hashable]) -> dict[Any, float]:
    """Key → share of its answers that are right, in [0, 1], keys in the order in which they first stand."""
    rows: dict[Any, list[bool]] = {}
    for right, key in zip(right_N, key_N, strict=True):
        rows.setdefault(key, []).append(right)
    return {key: mean(own) for key, own in rows.items()}


def pair_accuracy(right_N: Sequence[bool], pair_N: Sequence[Hashable]) -> float:
    """The share of pairs with both answers right, in [0, 1].

    Raises:
        ConfigError: a pair has not two answers.
    """
    size = Counter(pair_N)
    if odd := [pair for pair, count in size.items() if count != 2]:
        raise ConfigError(
            f"{len(odd)} pairs have not two questions, e.g. {odd[0]!r} with {size[odd[0]]}; give the benchmark the whole "
            "file (an even limit, no row left out)."
        )
    return mean([share == 1 for share in accuracy_by(right_N, pair_N).values()])


@dataclass(frozen=True)
class ChoiceQuestions:
    """Base of the benchmarks here: reads a letter from each text; they differ in `figures`."""

    sources: tuple[str, ...] | None = None
    """Held-out prompts of these sources; None: of all that are of this benchmark."""
    answer_tag: str | None = "answer"
    """The element that holds the answer. A text without it is the answer from the end of its thinking on; None: always."""

    benchmark: ClassVar[str]
    """As in prompt.target["benchmark"]."""

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt is a question of this benchmark whose answer is known."""
        target = prompt.target if isinstance(prompt.target, Mapping) else {}
        return target.get("benchmark") == self.benchmark and target.get("answer") not in (None, "")

    def __call__(self, texts: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        return shares(
            self.score([self.read(text, prompt) for text, prompt in zip(texts, prompts, strict=True)], prompts)
        )

    def read(self, text: str | None, prompt: Prompt) -> str | None:
        """The letter that a text chooses; None if it chooses none, or several."""
        choices = prompt.target.get("choices") or len(LETTERS)
        return None if text is None else read_letter(answer_text(text, self.answer_tag), choices)

    def score(self, predictions: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Figures in per cent of a letter per prompt, and "queries", their number."""
        if not prompts:
            raise ValueError("no questions; wanted at least one.")
        right_N = [
            own is not None and own == prompt.target["answer"].strip("()").upper()
            for own, prompt in zip(predictions, prompts, strict=True)
        ]
        found = self.figures(right_N, prompts) | {"parse_failed": mean([own is None for own in predictions])}
        return {name: 100 * share for name, share in found.items()} | {"queries": float(len(prompts))}

    def figures(self, right_N: Sequence[bool], prompts: Sequence[Prompt]) -> dict[str, float]:
        """In shares of 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class CvBench(ChoiceQuestions):
    """ "2d", the mean of the accuracies on ADE20K and COCO, "3d", that on Omni3D, "total", the mean of both where there
    are both, and each of "2d/ADE20K", "task/Count", …

    Source: arXiv:2406.16860; the released scoring gives the accuracy of each source. Uncertain: "total" as the mean of 2D and
    3D is from memory of the data card.
    """

    benchmark: ClassVar[str] = "cv_bench"

    def figures(self, right_N: Sequence[bool], prompts: Sequence[Prompt]) -> dict[str, float]:
        targets = [prompt.target for prompt in prompts]
        by_source = accuracy_by(right_N, [(t["type"].lower(), t["image_source"]) for t in targets])
        by_task = accuracy_by(right_N, [t["task"] for t in targets])
        found = {
            kind: mean([share for (own, _), share in by_source.items() if own == kind])
            for kind in dict.fromkeys(kind for kind, _ in by_source)
        }
        total = {"total": mean([found["2d"], found["3d"]])} if {"2d", "3d"} <= set(found) else {}
        by_name = {f"{kind}/{source}": share for (kind, source), share in by_source.items()}
        return total | found | by_name | {f"task/{task}": share for task, share in by_task.items()}


@dataclass(frozen=True)
class Blink(ChoiceQuestions):
    """ "subtask_mean", the mean of the sub-tasks' accuracies (not the accuracy over all questions, which is "micro"), and
    each "subtask/Spatial_Relation", …

    Source: arXiv:2404.12390. Grade A.
    """

    benchmark: ClassVar[str] = "blink"

    def figures(self, right_N: Sequence[bool], prompts: Sequence[Prompt]) -> dict[str, float]:
        by_task = accuracy_by(right_N, [prompt.target["task"] for prompt in prompts])
        named = {f"subtask/{task}": share for task, share in by_task.items()}
        return {"subtask_mean": mean(list(by_task.values())), "micro": mean(right_N)} | named


@dataclass(frozen=True)
class Mmvp(ChoiceQuestions):
    """ "pair_accuracy", the share of pairs with both questions right, and "single_accuracy", that of right questions. Say
    which one is quoted: papers report either.

    Source: arXiv:2401.06209 (pairs).
    """

    benchmark: ClassVar[str] = "mmvp"

    def figures(self, right_N: Sequence[bool], prompts: Sequence[Prompt]) -> dict[str, float]:
        return {"pair_accuracy": pair_accuracy(right_N, _pairs(prompts)), "single_accuracy": mean(right_N)}


@dataclass(frozen=True)
class Sat(ChoiceQuestions):
    """ "accuracy" over all questions, that of each "type/ego_movement", …, and, where each item is asked with both orders of
    its options (reader sat, order: circular), "both_orders", the share of items that are right either way.

    Source: arXiv:2412.07755; the circular test counts each of its 300 questions. "both_orders" is ours.
    """

    benchmark: ClassVar[str] = "sat"

    def figures(self, right_N: Sequence[bool], prompts: Sequence[Prompt]) -> dict[str, float]:
        by_type = accuracy_by(right_N, [prompt.target["question_type"] for prompt in prompts])
        found = {"accuracy": mean(right_N)} | {f"type/{kind}": share for kind, share in by_type.items()}
        is_circular = all("pair" in prompt.target for prompt in prompts)
        return found | ({"both_orders": pair_accuracy(right_N, _pairs(prompts))} if is_circular else {})


@dataclass(frozen=True)
class Vsr(ChoiceQuestions):
    """ "accuracy" of yes and no (or true and false), and "relation_mean", the mean of the relations' accuracies.

    Source: arXiv:2205.00363 (accuracy). "relation_mean" is ours: a rare relation weighs as much as a common one.
    """

    benchmark: ClassVar[str] = "vsr"

    def read(self, text: str | None, prompt: Prompt) -> str | None:
        """YES or NO; None if the text says neither."""
        found = None if text is None else read_truth(answer_text(text, self.answer_tag))
        return None if found is None else "YES" if found else "NO"

    def figures(self, right_N: Sequence[bool], prompts: Sequence[Prompt]) -> dict[str, float]:
        by_relation = accuracy_by(right_N, [prompt.target["task"] for prompt in prompts])
        return {"accuracy": mean(right_N), "relation_mean": mean(list(by_relation.values()))}


def _pairs(prompts: Sequence[Prompt]) -> list[tuple[str, int]]:
    """The pair of each row: of several samples the first of both questions, the second of both, and so on."""
    seen: Counter[str] = Counter()
    pairs = []
    for prompt in prompts:
        name = prompt.repeat_of or prompt.id
        pairs.append((prompt.target["pair"], seen[name]))
        seen[name] += 1
    return pairs
