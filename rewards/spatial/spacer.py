"""Answers on the layout of a scene, and the map that was drawn to find them: the reward of SpaceR."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo_mm.rewards.answers.numbers import read_number
from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.shared.prompt_target import choices_of, target_of
from grpo_mm.rewards.spatial.box_text import parse_points
from grpo_mm.rewards.text.mean_relative_accuracy import mean_relative_accuracy
from grpo_mm.rewards.text.typed_answer import same_choice
from grpo_mm.types import Prompt

Point = tuple[float, float]
Layout = Mapping[str, Sequence[Point]]
"""Name of a thing → the cells of its places, (x, y) from 0 to the size of the grid."""
_NAMED = re.compile(r"""["']([^"'\n]{1,80})["']\s*+:\s*+((?:[\[(,\s\d.+\-\])])*+)""")
_MOST = 200


def map_score(drawn: Layout, reference: Layout, *, grid: float = 10) -> float:
    """How near the things lie to where they are, in [0, 1]; 0 without reference places.

    Of each thing, places are paired from the nearest on. A pair is worth 1 - distance / diagonal of the grid, at least 0, and
    a thing the sum of its pairs over the larger number of its places. Things count by their places in the reference; those
    that it does not have are passed over. Names are compared in lower case.

    Source: SpaceR (arXiv:2504.01805), repository. Grade A.
    """
    own = {name.lower(): places for name, places in drawn.items()}
    total = sum(len(places) for places in reference.values())
    worth = 0.0
    for name, places in reference.items():
        here = own.get(name.lower(), ())
        if here and places:
            worth += len(places) * _paired(here, places, grid * math.sqrt(2)) / max(len(here), len(places))
    return worth / total if total else 0.0


def parse_map(text: str) -> dict[str, list[Point]]:
    """The things of a drawn map: "name": [[x, y], …] or [x, y]; of a name that comes twice, all places. At most 200 each."""
    found: dict[str, list[Point]] = {}
    for name, places in _NAMED.findall(text):
        points = found.setdefault(name.strip().lower(), [])
        points += parse_points(places)[: _MOST - len(points)]
    return found


@dataclass(frozen=True)
class SpacerAnswer:
    """score = accuracy of the answer element; a map in a right text adds its `map_score`, or takes all if that is 0.

    Accuracy is that of options, or `mean_relative_accuracy` for an "answer_type" of numerical. A map counts if prompt.target
    ["map"] has the reference, {"chair": [[2, 3]], …} on a grid of 10 × 10, and if the answer is right or its accuracy above
    0.5. Parts: "accuracy", "map" (NaN where none counts) and "parse_failed" (no answer element; the score is 0).

    Source: SpaceR (arXiv:2504.01805), repository, built on Video-R1. Grade A. Deviates: the type of the answer is taken row by
    row, of several elements the last counts, and a number on the boundary of a tolerance is within it.
    """

    tag: str = "answer"
    """The element that holds the answer."""
    map_tag: str = "map"
    """The element that holds the map."""
    grid: float = 10
    """Side of the map, in cells."""

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has an answer of one of the two types: an option, or a number."""
        target = target_of(prompt)
        kind, answer = target.get("answer_type", "multiple choice"), target.get("answer")
        if kind == "numerical":
            return read_number(str(answer)) is not None
        return kind == "multiple choice" and answer not in (None, "")

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt to which it does not apply."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        return table(rows, ("score", "accuracy", "map", "parse_failed"))

    def _one(self, text: str, prompt: Prompt) -> dict[str, float]:
        if not self.applies_to(prompt):
            return {}
        given = last_element(text, self.tag)
        if given is None:
            return {"score": 0.0, "accuracy": 0.0, "parse_failed": 1.0}
        accuracy = self._accuracy(given, prompt)
        drawn, reference = last_element(text, self.map_tag), prompt.target.get("map")
        if not reference or drawn is None or accuracy <= 0.5:
            return {"score": accuracy, "accuracy": accuracy, "parse_failed": 0.0}
        value = map_score(parse_map(drawn), reference, grid=self.grid)
        return {
            "score": accuracy + value if value > 0 else 0.0,
            "accuracy": accuracy,
            "map": value,
            "parse_failed": 0.0,
        }

    def _accuracy(self, given: str, prompt: Prompt) -> float:
        answer = str(prompt.target["answer"])
        if prompt.target.get("answer_type") != "numerical":
            return same_choice(given, answer, choices_of(prompt))
        number = read_number(given)
        return 0.0 if number is None else mean_relative_accuracy(number, float(read_number(answer)))


def _paired(places: Sequence[Point], others: Sequence[Point], diagonal: float) -> float:
    """Sum over pairs, the nearest first, of 1 - distance / diagonal, each at least 0."""
    pairs = sorted((math.dist(own, other), i, j) for i, own in enumerate(places) for j, other in enumerate(others))
    taken_own: set[int] = set()
    taken_others: set[int] = set()
    total = 0.0
    for distance, i, j in pairs:
        if i not in taken_own and j not in taken_others and math.isfinite(distance):
            taken_own.add(i)
            taken_others.add(j)
            total += max(0.0, 1 - distance / diagonal)
    return total
