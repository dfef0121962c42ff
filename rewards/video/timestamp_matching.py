"""Are the highlights of a clip named, with the right saliency? The timestamp matching reward of TempSamp-R1."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.tags import tagged_text
from grpo_mm.rewards.answers.times import readings_in
from grpo_mm.types import Prompt

Keys = Literal["seconds", "clips"]
_SCORES = re.compile(r"salienc|score", re.IGNORECASE)
_DIGIT = re.compile(r"\d")


def timestamp_matching(
    predicted: Mapping[int, float], reference: Mapping[int, float], *, beta: float = 2.0, f_weight: float = 0.6
) -> dict[str, float]:
    """f_weight · F_beta of the timestamps + (1 - f_weight) / (1 + WMSE) of the saliency of those that match, in [0, 1].

    Args:
        predicted, reference: clip number → saliency; a clip of the reference without saliency above 0 is no highlight.
        beta: above 1 weighs recall more.

    Returns:
        "score", "f" (F_beta) and "saliency" (1 / (1 + WMSE)). WMSE is the mean squared error of saliency on the clips that
        both name, weighted by the squared reference saliency. Without such a clip all three are 0.

    Raises:
        ValueError: the reference has no highlight.

    Source: TempSamp-R1, arXiv:2509.18056: R = 0.6 · F2 + 0.4 / (1 + WMSE). Grade B. Uncertain: the paper states no
    tolerance of a match (here: the same clip) and no second term without a match (here: 0).
    """
    reference = {clip: saliency for clip, saliency in reference.items() if saliency > 0}
    if not reference:
        raise ValueError("no clip of the reference has a saliency above 0; wanted at least one highlight.")
    matched = [clip for clip in predicted if clip in reference]
    if not matched:
        return {"score": 0.0, "f": 0.0, "saliency": 0.0}
    precision, recall = len(matched) / len(predicted), len(matched) / len(reference)
    f_score = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    weights = [reference[clip] * reference[clip] for clip in matched]
    errors = [predicted[clip] - reference[clip] for clip in matched]
    wmse = sum(weight * error * error for weight, error in zip(weights, errors)) / sum(weights)
    saliency = 1 / (1 + wmse)
    return {"score": f_weight * f_score + (1 - f_weight) * saliency, "f": f_score, "saliency": saliency}


def parse_highlights(text: str, *, tag: str | None = "answer") -> list[tuple[float, float]]:
    """(seconds, saliency) pairs of "… 82, 84, 86 seconds … saliency scores 2.3, 2.5, 2.1"; [] if there are none.

    The first number is a time. The numbers behind the word "score" or "saliency" that follows it are the scores; without
    such a word, the second half of the numbers are. A time without a score, or with one that cannot be told ("-1", "4/5"),
    has saliency 0; a score without a time is dropped, and so is a time that cannot be told, with its score.
    """
    text = tagged_text(text, tag)
    first = _DIGIT.search(text)
    word = _SCORES.search(text, first.end()) if first else None
    if word:
        times, scores = readings_in(text[: word.start()]), readings_in(text[word.end() :])
    else:
        numbers = readings_in(text)
        half = (len(numbers) + 1) // 2
        times, scores = numbers[:half], numbers[half:]
    scores += [0.0] * (len(times) - len(scores))
    return [(time, score or 0.0) for time, score in zip(times, scores) if time is not None]


def on_grid(highlights: Sequence[tuple[float, float]], *, clip_seconds: float) -> dict[int, float]:
    """Clip number → saliency, each time put to the nearest multiple of a clip, halves up.

    Of several times of one clip the first counts; infinite and NaN times are left out, infinite scores stay.
    """
    clips: dict[int, float] = {}
    for seconds, saliency in highlights:
        if math.isfinite(seconds):
            clips.setdefault(math.floor(seconds / clip_seconds + 0.5), saliency)
    return clips


@dataclass(frozen=True)
class TimestampMatching:
    """score = `timestamp_matching` of the times and scores in the text with prompt.target["saliency"].

    The target is a list (one saliency per clip from the start) or a mapping, whose keys may be strings, as JSON has them. Where
    several annotators scored a clip, as in QVHighlights, their mean counts.
    Parts: "f", "saliency", and "parse_failed" (1 where the text has no number).
    """

    clip_seconds: float = 2.0
    """The grid: QVHighlights has clips of 2 s."""
    keys: Keys = "seconds"
    """What the keys of a mapping are: times in seconds, or numbers of clips. Times in the text are seconds."""
    tag: str | None = "answer"
    """Without this element the entire text is read; None: always."""

    def __post_init__(self) -> None:
        if not self.clip_seconds > 0 or self.keys not in get_args(Keys):
            raise ConfigError(
                f"clip_seconds = {self.clip_seconds}, keys = {self.keys!r}; wanted clip_seconds > 0 and keys of "
                f"{' or '.join(get_args(Keys))}."
            )

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has a highlight: a saliency above 0."""
        return any(saliency > 0 for saliency in self._reference(prompt).values())

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt to which it does not apply."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        names = ("score", "f", "saliency", "parse_failed")
        return {name: torch.tensor([row.get(name, math.nan) for row in rows], dtype=torch.float64) for name in names}

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        predicted = on_grid(parse_highlights(text, tag=self.tag), clip_seconds=self.clip_seconds)
        return {**timestamp_matching(predicted, self._reference(prompt)), "parse_failed": float(not predicted)}

    def _reference(self, prompt: Prompt) -> dict[int, float]:
        saliency: Any = prompt.target.get("saliency") if isinstance(prompt.target, Mapping) else None
        if not saliency:
            return {}
        if not isinstance(saliency, Mapping):
            return {clip: _mean(value) for clip, value in enumerate(saliency)}
        grid = self.clip_seconds if self.keys == "seconds" else 1.0
        return on_grid([(float(key), _mean(value)) for key, value in saliency.items()], clip_seconds=grid)


def _mean(saliency: Any) -> float:
    """Of one clip, by one annotator or several; 0 for none."""
    if isinstance(saliency, Sequence) and not isinstance(saliency, str):
        return sum(map(float, saliency)) / len(saliency) if saliency else 0.0
    return float(saliency or 0)
