"""EditScore: a vision-language model that says in numbers how well a picture was edited."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rewards.answers import tags
from grpo_mm.rewards.judges.asks_vlm import AsksVlm
from grpo_mm.rewards.judges.vlm import Question, answers_of
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.source_picture import source_of
from grpo_mm.types import Prompt


@dataclass
class EditScore(AsksVlm):
    """score = √(min(following, consistency) × min(naturalness, cleanness)), each from 0 to 1; all four are parts. NaN without an answer.

    The model is asked twice: with the picture before and after, and with the one after alone.

    Source: arXiv:2509.23909; editscore/__init__.py of VectorSpaceLab/EditScore, after VIEScore (arXiv:2312.14867). Deviates: the
    questions are in our own words; one answer is read instead of the mean of several; the authors' scores are 0 to 10, and where an
    answer cannot be read they take a random or a middle score.
    """

    needs_source: ClassVar[bool] = True
    goldens: ClassVar[str] = "edits"
    """What it is tried on (`grpo_mm/golden`)."""

    vlm: Annotated[Any, Role("vlm")]
    """Who is asked: kind transformers (a local model) or server."""
    score_range: int = 25
    """The highest number that the model may give; the published models were taught with 25."""

    def __post_init__(self) -> None:
        if self.score_range < 1:
            raise ConfigError(f"edit_score: score_range = {self.score_range}; wanted at least 1.")

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts with a picture -> score and the four parts, [M].

        Raises:
            UserError: a prompt brings no picture.
        """
        both = [
            Question(edit_question(prompt.text, self.score_range), (source_of(prompt), item))
            for item, prompt in zip(items, prompts)
        ]
        alone = [Question(quality_question(self.score_range), (item,)) for item in items]
        answers = answers_of(self.vlm, [*both, *alone])
        pairs = [parse_scores(answer, self.score_range) or (float("nan"),) * 2 for answer in answers]
        said_M4 = torch.tensor([[*a, *b] for a, b in zip(pairs[: len(both)], pairs[len(both) :])]).reshape(-1, 4)
        names = ("following", "consistency", "naturalness", "cleanness")
        lowest = said_M4[:, :2].amin(1) * said_M4[:, 2:].amin(1)  # NaN where one is
        return {"score": lowest.sqrt(), **{name: said_M4[:, i] for i, name in enumerate(names)}}


_FORM = 'Answer with one JSON object and nothing else: {{"reasoning": "a short text", "score": [a, b]}}'


def edit_question(instruction: str, most: int) -> str:
    """Asks for two numbers about a picture before and after, for `parse_scores`."""
    return f"""The first picture was edited by an instruction, and the second is the result. Give two numbers from 0 to {most}:
a: how well the result does what the instruction asks ({most}: wholly, 0: not at all);
b: how well everything else was kept as it was ({most}: nothing else changed, 0: another picture).
Instruction: {instruction}
{_FORM.format()}"""


def quality_question(most: int) -> str:
    """Asks for two numbers about one picture, for `parse_scores`."""
    return f"""This picture was made by a machine. Give two numbers from 0 to {most}:
a: how natural it looks in light, shadow, distance and scale ({most}: like a photograph or a finished drawing, 0: not at all);
b: how free of faults it is: smears, seams, broken shapes, wrong limbs or letters ({most}: none, 0: everywhere).
{_FORM.format()}"""


_SCORES = re.compile(
    r"[\"']?\bscores?[\"']?\s{0,3}[:=]\s{0,3}[\[(]\s{0,3}(\d{1,3}(?:\.\d{1,4})?)\s{0,3},\s{0,3}(\d{1,3}(?:\.\d{1,4})?)\s{0,3}[\])]",
    re.IGNORECASE,
)


def parse_scores(answer: str | None, most: int) -> tuple[float, float] | None:
    """The last pair of numbers after "score", as shares of `most`; None where there is none, or one is not from 0 to `most`."""
    found = list(_SCORES.finditer(tags.after_thinking(answer or "")))
    if not found:
        return None
    one, other = (float(number) for number in found[-1].groups())
    return (one / most, other / most) if max(one, other) <= most else None
