"""The shape world: coloured shapes on a dark ground, drawn at any size, with captions that can be checked.

One generator for all tiny models: single images here; clips and question-answer scenes build on `Scene` and `render`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from grpo_mm.types import Prompt

BACKGROUND = (20, 20, 26)
COLORS = {
    # Brightest channel always about 230, so that dimming at an edge leaves the hue readable.
    "red": (230, 45, 45),
    "green": (45, 225, 80),
    "blue": (50, 90, 235),
    "yellow": (235, 215, 45),
    "purple": (185, 55, 230),
    "cyan": (50, 215, 230),
}
SHAPES = ("circle", "square", "triangle")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first thing lies as seen from the second; y grows downwards."""

Split = Literal["train", "monitor", "report"]
HELD_OUT_PAIRS = 36
"""Pairs of objects in each of monitor and report; 2 orders × 4 relations make 288 prompts of them."""


@dataclass(frozen=True)
class Thing:
    """Example: Thing("circle", "red", x=0.3, y=0.5, size=0.35): left of the middle, a third of the image wide."""

    shape: str
    color: str
    x: float
    """Middle of the bounding box, 0 at the left edge, 1 at the right."""
    y: float
    """0 at the top edge, 1 at the bottom."""
    size: float
    """Width and height of the bounding box."""


@dataclass(frozen=True)
class Scene:
    """Things in the order in which they are painted: later ones hide earlier ones."""

    things: tuple[Thing, ...]


def render(scene: Scene, size_px: int = 32) -> np.ndarray:
    """The scene as uint8 [H, W, 3], antialiased."""
    centre = (np.arange(size_px) + 0.5) / size_px
    image_HW3 = np.empty((size_px, size_px, 3))
    image_HW3[:] = BACKGROUND
    for thing in scene.things:
        distance_HW = _distance(thing.shape, (centre - thing.x)[None, :], (centre - thing.y)[:, None], thing.size)
        coverage_HW1 = np.clip(0.5 - distance_HW * size_px, 0, 1)[..., None]
        image_HW3 += coverage_HW1 * (np.array(COLORS[thing.color]) - image_HW3)
    return np.rint(image_HW3).astype(np.uint8)


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, size: float) -> np.ndarray:
    """Distance to the outline, negative inside (exact but for the outside of corners)."""
    half = size / 2
    if shape == "circle":
        return np.hypot(dx, dy) - half
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) - half
    if shape == "triangle":  # upright, as high as wide
        return np.maximum((abs(dx) - (dy + half) / 2) / 1.25**0.5, dy - half + 0 * dx)
    raise ValueError(f"unknown shape {shape!r}, wanted one of {SHAPES}")


def random_scene(
    spec: dict[str, Any], rng: random.Random, *, sizes: tuple[float, float] = (0.3, 0.42), tries: int = 10_000
) -> Scene:
    """A scene that satisfies `spec`, everything visible and nothing touching.

    Args:
        spec: {"things": [{"shape": ..., "color": ...}, ...], "relation": ...}; the relation holds between the first
            two things and may be missing.
        sizes: smallest and largest bounding box.

    Raises:
        ValueError: no such scene was found (too many things, or too large).
    """
    for _ in range(tries):
        things = tuple(_placed(thing, rng.uniform(*sizes), rng) for thing in spec["things"])
        if any(_touch(a, b) for a, b in itertools.combinations(things, 2)):
            continue
        if spec.get("relation") is None or relation_holds(things[0], things[1], spec["relation"]):
            return Scene(things)
    raise ValueError(f"found no place for {len(spec['things'])} things of size {sizes}; make them smaller or fewer")


def _placed(thing: dict[str, str], size: float, rng: random.Random, margin: float = 0.03) -> Thing:
    low, high = margin + size / 2, 1 - margin - size / 2
    return Thing(thing["shape"], thing["color"], rng.uniform(low, high), rng.uniform(low, high), size)


def _touch(a: Thing, b: Thing, gap: float = 0.05) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) < (a.size + b.size) / 2 + gap


def relation_holds(a: Thing, b: Thing, relation: str) -> bool:
    """Whether `a` lies in that direction from `b`, and by twice as much as to either side of it."""
    step_x, step_y = RELATIONS[relation]
    dx, dy = a.x - b.x, a.y - b.y
    along, across = dx * step_x + dy * step_y, abs(dx * step_y) + abs(dy * step_x)
    return along > 2 * across


def caption(spec: dict[str, Any]) -> str:
    """Example: "a red circle left of a blue square"."""
    first, second = (f"a {thing['color']} {thing['shape']}" for thing in spec["things"])
    return f"{first} {spec['relation']} {second}"


def pair_split(split: Split) -> list[tuple[dict[str, str], dict[str, str]]]:
    """The pairs of objects of a split, which differ in colour; splits share none."""
    objects = [{"shape": shape, "color": color} for color in COLORS for shape in SHAPES]
    pairs = [(a, b) for a, b in itertools.combinations(objects, 2) if a["color"] != b["color"]]
    random.Random("shape world").shuffle(pairs)
    start, stop = {
        "monitor": (0, HELD_OUT_PAIRS),
        "report": (HELD_OUT_PAIRS, 2 * HELD_OUT_PAIRS),
        "train": (2 * HELD_OUT_PAIRS, len(pairs)),
    }[split]
    return pairs[start:stop]


def specs(split: Split) -> list[dict[str, Any]]:
    """Every pair of objects of the split, in both orders and all relations, in a fixed shuffled order.

    Splits share no pair, so that a held-out prompt asks for a combination never asked for in training.
    """
    found = [
        {"things": [dict(first), dict(second)], "relation": relation}
        for a, b in pair_split(split)
        for first, second in ((a, b), (b, a))
        for relation in RELATIONS
    ]
    random.Random(split).shuffle(found)  # so that a short slice is as varied as the whole
    return found


def prompts(split: Split) -> list[Prompt]:
    """Example of one: Prompt("shape_world/a-red-circle-above-a-blue-square", "a red circle above a blue square",
    target={"things": [{"shape": "circle", "color": "red"}, {"shape": "square", "color": "blue"}], "relation": "above"})
    """
    return [
        Prompt(f"shape_world/{text.replace(' ', '-')}", text, target=spec, source="shape_world")
        for spec in specs(split)
        for text in [caption(spec)]
    ]


@dataclass(frozen=True)
class ShapeWorldPrompts:
    """Prompts of one split; the first `limit` of them."""

    split: Split = "train"
    """train, or questions that training never sees: monitor, report."""
    limit: int | None = None
    """So many prompts are taken, from the first on; null: all."""

    def load(self) -> list[Prompt]:
        return prompts(self.split)[: self.limit]


@dataclass(frozen=True)
class CaptionedScenes:
    """Draws training images with captions of a split, a part of which may be wrong.

    The scene follows its caption, except that each of its five attributes (two colours, two shapes, the relation) is
    replaced with some probability.
    """

    split: Split = "train"
    size_px: int = 24
    wrong_color: float = 0.0
    wrong_shape: float = 0.0
    wrong_relation: float = 0.0

    def __call__(self, count: int, rng: random.Random) -> tuple[np.ndarray, list[str]]:
        """`count` images, uint8 [count, H, W, 3], and their captions."""
        chosen = rng.choices(specs(self.split), k=count)
        scenes = [random_scene(self._misread(spec, rng), rng) for spec in chosen]
        return np.stack([render(scene, self.size_px) for scene in scenes]), [caption(spec) for spec in chosen]

    def _misread(self, spec: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        things = [dict(thing) for thing in spec["things"]]
        relation = spec["relation"]
        for thing, other in (things, things[::-1]):
            if rng.random() < self.wrong_color:
                old, thing["color"] = thing["color"], _another(thing["color"], list(COLORS), rng)
                if thing["color"] == other["color"]:
                    other["color"] = old  # a swap, the classical binding mistake
            if rng.random() < self.wrong_shape:
                thing["shape"] = _another(thing["shape"], SHAPES, rng)
        if rng.random() < self.wrong_relation:
            relation = _another(relation, list(RELATIONS), rng)
        return {"things": things, "relation": relation}


HONEST = CaptionedScenes()
MISLEADING = CaptionedScenes(wrong_color=0.12, wrong_shape=0.15, wrong_relation=0.2)
"""Enough mistakes to bring a model that obeys down to about half the score; more bring it down to chance."""


def _another(value: str, values: Sequence[str], rng: random.Random) -> str:
    return rng.choice([other for other in values if other != value])
