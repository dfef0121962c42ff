"""The rewards of grounded reasoning with images and text (GRIT): form of the text, number of boxes, answer.

Its paper (arXiv:2505.15879, grade B) and its repository (grade A) differ; `version` picks one of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.shared.prompt_target import choices_of, target_of
from grpo_mm.rewards.spatial.box_reading import BoxReading
from grpo_mm.rewards.spatial.box_text import Form, parse_boxes
from grpo_mm.rewards.text.text_overlap import bleu, words
from grpo_mm.rewards.text.typed_answer import same_choice
from grpo_mm.types import Prompt

Version = Literal["paper", "repository"]
_TAGS = ("<think>", "</think>", "<rethink>", "</rethink>")
_INTEGER = re.compile(r"\d{1,9}")


def paper_structure(text: str) -> float:
    """0.5 for a think pair and 0.5 for a rethink pair behind it (or anywhere, if there is no think pair)."""
    think_end = _pair_end(text, "think", 0)
    return 0.5 * (think_end >= 0) + 0.5 * (_pair_end(text, "rethink", max(0, think_end)) >= 0)


def repository_structure(text: str) -> float:
    """0.1 for each of the four tags, in order, and for a thought of two words or more if all are there.

    Each tag is looked for behind the last of the one before; one that is missing is passed over.
    """
    place, points = 0, 0
    for tag in _TAGS:
        found = text.rfind(tag, place)
        if found >= 0:
            points, place = points + 1, found + len(tag)
    thought = text.split("<think>")[-1].split("</think>")[0]
    return 0.1 * (points + (points == len(_TAGS) and len(words(thought)) > 1))


@dataclass(frozen=True)
class GritFormat:
    """score = structure + 0.5 if there is a box, of the text alone; it applies to every prompt.

    `paper`: `paper_structure` (up to 1) and a box anywhere. `repository`: `repository_structure` (up to 0.5), a box before the
    first <rethink>, and "answer_format": 0.25 if there is an <answer>, 0.25 more if there is one only. Parts: "structure",
    "boxes" (0 or 0.5) and "answer_format".

    Trap: all of it is earned without solving anything, and outweighs an answer worth 1.1.
    """

    version: Version = "paper"
    """As the paper has it, or the released code."""
    form: Form = "integers"
    """How boxes are written, see `parse_boxes`."""

    def __post_init__(self) -> None:
        _check_version(self.version)

    def applies_to(self, prompt: Prompt) -> bool:
        return True

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; of the prompts only their number is read."""
        rows = [self.parts(text) for text, _ in zip(items, prompts, strict=True)]
        return table(
            [{"score": sum(row.values()), **row} for row in rows], ("score", "structure", "boxes", "answer_format")
        )

    def parts(self, text: str) -> dict[str, float]:
        boxes = 0.5 * bool(parse_boxes(before_rethink(text, self.version), form=self.form, most=1))
        if self.version == "paper":
            return {"structure": paper_structure(text), "boxes": boxes, "answer_format": 0.0}
        answers = text.count("<answer>")
        return {
            "structure": repository_structure(text),
            "boxes": boxes,
            "answer_format": 0.25 * (answers > 0) + 0.25 * (answers == 1),
        }


@dataclass(frozen=True)
class GritCount(BoxReading):
    """score = `weight` if the text has as many boxes as prompt.target["answer"] says, on counting questions; else 0.

    A counting question has an integer for answer and a "question_type" or "task" of the target among `question_types`, or
    the prompt is of a source among `sources`. Part: "boxes", their number. With `repository` only boxes before <rethink>
    count, and a text without it scores 0.

    Deviates: the repository asks only the first row of a batch for its data set; here each row. Boxes that nearly coincide
    count once (`merge_iou`), or one box said n times would do. The weight is 0.5 in the paper and 1 in the repository.
    """

    form: Form = "integers"
    """How boxes are written: brackets, element, json, integers; see `parse_boxes`."""
    version: Version = "paper"
    """As the paper has it, or the released code."""
    weight: float = 0.5
    """What the right number of boxes earns."""
    question_types: tuple[str, ...] = ("count", "counting")
    """Question types of the target that count as counting."""
    sources: tuple[str, ...] = ()
    """Names of prompt sources all of whose questions count things."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_version(self.version)

    def applies_to(self, prompt: Prompt) -> bool:
        target = target_of(prompt)
        is_counting = target.get("question_type") in self.question_types or target.get("task") in self.question_types
        return (is_counting or prompt.source in self.sources) and _count(prompt) is not None

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and boxes, [M] each; NaN for a prompt to which it does not apply."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "boxes"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        read = before_rethink(text, self.version)
        boxes, wanted = len(self.found(read)), _count(prompt)
        is_right = boxes == min(wanted, self.most) and (self.version == "paper" or "<rethink>" in text)
        return {"score": self.weight * is_right, "boxes": float(boxes)}


@dataclass(frozen=True)
class GritAnswer:
    """score = 1 if the answer is that of the target, + `bleu_weight` · BLEU-1 of their words. Parts: "accuracy", "bleu".

    Deviates: the first term is a judge's verdict in GRIT; here it is equality of words (lower case, without punctuation) or
    of option letters. With a judge as a reward of its own, set `exact: false`. Read is the last answer element, where the
    repository takes all behind the first tag.
    """

    tag: str = "answer"
    """The element that holds the answer."""
    exact: bool = True
    """Whether equality of words earns 1; false: only BLEU is left."""
    bleu_weight: float = 0.1
    """Of BLEU-1."""

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has an answer."""
        return target_of(prompt).get("answer") not in (None, "")

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt without an answer."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "accuracy", "bleu"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        given, answer = last_element(text, self.tag), str(prompt.target["answer"])
        if given is None:
            return {"score": 0.0, "accuracy": 0.0, "bleu": 0.0}
        own, other = words(given), words(answer)
        accuracy = float((own == other and bool(own)) or bool(same_choice(given, answer, choices_of(prompt))))
        overlap = bleu(own, other, max_n=1)
        return {"score": self.exact * accuracy + self.bleu_weight * overlap, "accuracy": accuracy, "bleu": overlap}


def before_rethink(text: str, version: Version) -> str:
    """Where boxes are looked for: the entire text, or with `repository` what comes before <rethink>; "" without one."""
    if version == "paper":
        return text
    place = text.find("<rethink>")
    return text[:place] if place >= 0 else ""


def _pair_end(text: str, tag: str, start: int) -> int:
    """Where the first pair from there on ends; -1 if there is none."""
    opening = text.find(f"<{tag}>", start)
    return text.find(f"</{tag}>", opening) if opening >= 0 else -1


def _count(prompt: Prompt) -> int | None:
    found = _INTEGER.fullmatch(str(target_of(prompt).get("answer", "")).strip())
    return int(found[0]) if found else None


def _check_version(version: str) -> None:
    if version not in get_args(Version):
        raise ConfigError(f"version = {version!r}; wanted {' or '.join(get_args(Version))}.")
