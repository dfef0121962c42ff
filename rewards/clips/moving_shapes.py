"""Does the clip show what its caption asks for? Reads pixels of every frame: which coloured shapes are there, what moves, where to.

Written against reward hacking, as the reward of still pictures that reads the frames: what moves has to go on moving from frame
to frame, what stays has to stay in sight, and nothing else may be there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_mm.rewards.images.shape_world import Detection, credit, match, read
from grpo_mm.rewards.shared.clips import takes_clips
from grpo_mm.types import Clip, Prompt

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
PARTS = ("score", "all_correct", "color", "shape", "motion", "rest", "extras")

_SEEN = 2 / 3
"""Share of the frames in which a thing must be seen in its colour for its motion to count."""
_WAY = 0.3
"""Share of the picture that earns the whole credit of a motion."""
_STILL, _RESTLESS = 0.06, 0.16
"""Furthest distance from its mean place at which a thing stays, and from which on it does not at all."""


@dataclass(frozen=True)
class _Frame:
    things: Sequence[Detection | None]
    """One for each wanted thing."""
    credits: Sequence[float]
    surplus: int
    stray: float


def score(frames_FHWC: np.ndarray, target: Mapping[str, Any]) -> dict[str, float]:
    """How well uint8 frames show a target such as
    {"things": [{"shape": "circle", "color": "red"}, {"shape": "square", "color": "blue"}], "moves": "left"}, of which the first
    thing moves and the others, if there are any, stay.

    Returns:
        score: 0 to 1. 40 % for what is seen, averaged over the frames (half for colours, half for shapes), 60 % for the motion; of
            these a third for what stays, if something should. Every thing nobody asked for multiplies by 0.8, stray colour by its share.
        all_correct: 1 if that holds in all frames but one, outlines are clean and nothing else is there.
        color, shape: share of frames and things that are right.
        motion: how far the first thing goes the right way, up to a share of the picture, times the share of its steps that do;
            0 where it goes more to the side than half of that.
        rest: 1 if what should stay does, 0 if it moves or is not seen; NaN where nothing should.
        extras: mean number of things that are not of a wanted colour, or are surplus.
    """
    wanted = target["things"]
    frames = [_frame(frame_HWC, wanted) for frame_HWC in np.asarray(frames_FHWC)]
    colors = np.array([[_has_color(thing, want) for thing, want in zip(frame.things, wanted)] for frame in frames])
    shapes = np.array([[_has_shape(thing, want) for thing, want in zip(frame.things, wanted)] for frame in frames])
    clean = np.array([all(thing is not None and thing.fit > 0.75 for thing in frame.things) for frame in frames])
    motion = _motion(_places(frames, colors, 0), DIRECTIONS[target["moves"]])
    rests = [_rest(_places(frames, colors, index)) for index in range(1, len(wanted))]
    rest = float(np.mean(rests)) if rests else float("nan")
    moves = (2 * motion + rest) / 3 if rests else motion
    extras = float(np.mean([frame.surplus for frame in frames]))
    stray = float(np.mean([frame.stray for frame in frames]))
    look = float(np.mean([frame.credits for frame in frames]))
    right = colors.all(axis=1) & shapes.all(axis=1) & clean
    return {
        "score": (0.4 * look + 0.6 * moves) * 0.8**extras * (1 - stray),
        "all_correct": float(
            right.sum() >= len(frames) - 1
            and motion > 0.85
            and min(rests, default=1) == 1
            and extras < 0.15
            and stray < 0.1
        ),
        "color": float(colors.mean()),
        "shape": float(shapes.mean()),
        "motion": motion,
        "rest": rest,
        "extras": extras,
    }


@dataclass(frozen=True)
class MovingShapesReward:
    """`score` for a batch of clips; `scope` says that it looks at one output at a time."""

    scope = "output"

    @takes_clips
    def __call__(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M clips and M prompts -> the parts of `score`, each float32 [M], without `rest` where nothing should; NaN for what is no
        clip."""
        rows = [
            score(clip.frames_FCHW.permute(0, 2, 3, 1).cpu().numpy(), prompt.target)
            for clip, prompt in zip(clips, prompts)
        ]
        rests = any(len(prompt.target["things"]) > 1 for prompt in prompts)
        return {name: torch.tensor([row[name] for row in rows]) for name in PARTS if rests or name != "rest"}


def _frame(frame_HWC: np.ndarray, wanted: Sequence[Mapping[str, str]]) -> _Frame:
    found, stray = read(frame_HWC)
    things = match(found, wanted)
    surplus = len(found) - sum(_has_color(thing, want) for thing, want in zip(things, wanted))
    return _Frame(things, [credit(thing, want) for thing, want in zip(things, wanted)], surplus, stray)


def _has_color(thing: Detection | None, want: Mapping[str, str]) -> bool:
    return thing is not None and thing.color == want["color"]


def _has_shape(thing: Detection | None, want: Mapping[str, str]) -> bool:
    return thing is not None and thing.shape == want["shape"]


def _places(frames: Sequence[_Frame], colors: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(frame numbers [k], x and y [k, 2]) where that thing is seen in its colour; None where that is too seldom."""
    seen = np.flatnonzero(colors[:, index])
    if len(frames) < 2 or len(seen) < max(2, _SEEN * len(frames)):
        return None
    return seen / (len(frames) - 1), np.array([(frames[f].things[index].x, frames[f].things[index].y) for f in seen])


def _motion(places: tuple[np.ndarray, np.ndarray] | None, direction: tuple[int, int]) -> float:
    if places is None:
        return 0.0
    time_k, place_k2 = places
    time_k = time_k - time_k.mean()
    way_2 = time_k @ (place_k2 - place_k2.mean(axis=0)) / (time_k @ time_k)  # least squares, over the whole clip
    along, across = way_2 @ direction, abs(way_2[::-1] @ np.abs(direction))
    if along <= 2 * across:
        return 0.0
    steps = np.diff(place_k2, axis=0) @ direction
    return float(min(along / _WAY, 1.0) * np.mean(steps > 0))


def _rest(places: tuple[np.ndarray, np.ndarray] | None) -> float:
    if places is None:
        return 0.0
    place_k2 = places[1]
    furthest = np.linalg.norm(place_k2 - place_k2.mean(axis=0), axis=1).max()
    return float(np.clip((_RESTLESS - furthest) / (_RESTLESS - _STILL), 0, 1))
