"""Moving shapes: clips of a coloured shape of the shape world that moves, alone or beside one that stays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from grpo_mm.datasets.worlds.shape_world import COLORS, SHAPES, Scene, Split, Thing, pair_split, render
from grpo_mm.types import Prompt

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Where the first thing goes; y grows downwards."""
FRAMES, SIZE_PX, FPS = 9, 32, 8
"""Of the clips that the tiny model is made of."""


@dataclass(frozen=True)
class MovingScene:
    """A scene at the start of a clip, and how far its first thing goes until the end.

    Example: MovingScene(scene, dx=-0.4, dy=0.0): two fifths of the picture's width to the left.
    """

    scene: Scene
    dx: float
    dy: float

    def at(self, time: float) -> Scene:
        """The scene at a time from 0, the first frame, to 1, the last."""
        mover, *others = self.scene.things
        return Scene((replace(mover, x=mover.x + time * self.dx, y=mover.y + time * self.dy), *others))


def draw_clip(moving: MovingScene, *, frames: int = FRAMES, size_px: int = SIZE_PX) -> np.ndarray:
    """uint8 [F, H, W, 3]; the motion is even."""
    return np.stack([render(moving.at(frame / max(frames - 1, 1)), size_px) for frame in range(frames)])


def random_moving_scene(spec: dict[str, Any], rng: random.Random) -> MovingScene:
    """A clip's scene that shows `spec`: what moves and what stays have a half of the picture each, so nothing touches."""
    first, *others = spec["things"]
    step_x, step_y = DIRECTIONS[spec["moves"]]
    way, half = rng.uniform(0.4, 0.5), rng.choice((0, 1))
    size, other_size = rng.uniform(0.32, 0.4), rng.uniform(0.32, 0.4)
    middle = 0.5 + rng.uniform(-1, 1) * (0.97 - way - size) / 2
    along = middle - way / 2 * (step_x + step_y)
    across, other_across = _within(half, size, rng), _within(1 - half, other_size, rng)
    other_along = rng.uniform(0.03 + other_size / 2, 0.97 - other_size / 2)
    if not others:  # it may pass through the middle
        across = rng.uniform(0.03 + size / 2, 0.97 - size / 2)
    things = [_placed(first, along, across, size, sideways=step_x != 0)]
    things += [_placed(other, other_along, other_across, other_size, sideways=step_x != 0) for other in others]
    return MovingScene(Scene(tuple(things)), way * step_x, way * step_y)


def _placed(thing: dict[str, str], along: float, across: float, size: float, *, sideways: bool) -> Thing:
    x, y = (along, across) if sideways else (across, along)
    return Thing(thing["shape"], thing["color"], x, y, size)


def _within(half: int, size: float, rng: random.Random) -> float:
    """A middle such that a thing of that size lies in the first or second half, a little away from both ends."""
    return half / 2 + rng.uniform(0.02 + size / 2, 0.48 - size / 2)


def caption(spec: dict[str, Any]) -> str:
    """Example: "a red circle moves left", or "a red circle moves left while a blue square stays"."""
    first, *others = (f"a {thing['color']} {thing['shape']}" for thing in spec["things"])
    return f"{first} moves {spec['moves']}" + "".join(f" while {other} stays" for other in others)


def specs(split: Split) -> list[dict[str, Any]]:
    """One thing that moves, in a fixed shuffled order: its colour, shape and direction in a combination that other splits lack.

    Every colour comes with every shape in all splits but for its direction: 36 to train on, 12 to monitor, 24 to report.
    """
    residues = {"train": (2, 4, 5), "monitor": (1,), "report": (0, 3)}[split]
    found = [
        {"things": [{"shape": shape, "color": color}], "moves": direction}
        for i, color in enumerate(COLORS)
        for j, shape in enumerate(SHAPES)
        for k, direction in enumerate(DIRECTIONS)
        if (i + 2 * j + k) % 6 in residues
    ]
    random.Random(f"moving shapes/{split}").shuffle(found)  # so that a short slice is as varied as the whole
    return found


def pair_specs(split: Split) -> list[dict[str, Any]]:
    """Every pair of objects of the split, either of them moving while the other stays, in all directions.

    The pairs are those of the shape world's splits, which share none.
    """
    found = [
        {"things": [dict(first), dict(second)], "moves": direction}
        for a, b in pair_split(split)
        for first, second in ((a, b), (b, a))
        for direction in DIRECTIONS
    ]
    random.Random(f"moving shapes/{split}").shuffle(found)
    return found


def prompts(split: Split, things: Literal[1, 2] = 1) -> list[Prompt]:
    """Example of one: Prompt("moving_shapes/a-red-circle-moves-left", "a red circle moves left",
    target={"things": [{"shape": "circle", "color": "red"}], "moves": "left"})
    """
    return [
        Prompt(f"moving_shapes/{text.replace(' ', '-')}", text, target=spec, source="moving_shapes")
        for spec in (specs if things == 1 else pair_specs)(split)
        for text in [caption(spec)]
    ]


@dataclass(frozen=True)
class MovingShapesPrompts:
    """Prompts of one split; the first `limit` of them."""

    split: Split = "train"
    """train, or prompts that training never sees: monitor, report."""
    things: Literal[1, 2] = 1
    """1: one thing that moves; 2: another that stays."""
    limit: int | None = None
    """So many prompts are taken, from the first on; null: all."""

    def load(self) -> list[Prompt]:
        return prompts(self.split, self.things)[: self.limit]


@dataclass(frozen=True)
class CaptionedClips:
    """Draws training clips with captions of a split, a part of which may be wrong.

    The clip follows its caption, except that each of its attributes (colours, shapes, which of two moves, where to) is replaced
    with some probability.
    """

    split: Split = "train"
    things: Literal[1, 2] = 1
    wrong_color: float = 0.0
    wrong_shape: float = 0.0
    wrong_mover: float = 0.0
    wrong_direction: float = 0.0

    def __call__(self, count: int, rng: random.Random) -> tuple[np.ndarray, list[str]]:
        """`count` clips, uint8 [count, F, H, W, 3], and their captions."""
        chosen = rng.choices((specs if self.things == 1 else pair_specs)(self.split), k=count)
        clips = [draw_clip(random_moving_scene(self._misread(spec, rng), rng)) for spec in chosen]
        return np.stack(clips), [caption(spec) for spec in chosen]

    def _misread(self, spec: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        things = [dict(thing) for thing in spec["things"]]
        moves = spec["moves"]
        for thing in things:
            if rng.random() < self.wrong_color:
                taken = {one["color"] for one in things}
                thing["color"] = rng.choice([color for color in COLORS if color not in taken])
            if rng.random() < self.wrong_shape:
                thing["shape"] = _another(thing["shape"], SHAPES, rng)
        if rng.random() < self.wrong_mover:
            things.reverse()
        if rng.random() < self.wrong_direction:
            moves = _another(moves, list(DIRECTIONS), rng)
        return {"things": things, "moves": moves}


PAIRS = CaptionedClips(things=2)
HONEST = CaptionedClips()


def _another(value: str, values: Sequence[str], rng: random.Random) -> str:
    return rng.choice([other for other in values if other != value])
