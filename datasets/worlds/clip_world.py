"""The clip world: short videos of two coloured shapes, each visible for a time of its own, and when-questions about one.

A question picks its object by words (colour, shape, motion), so that a span cannot be told without reading it. Intervals
are short: the best constant answer scores a mean temporal IoU of 0.22.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from grpo_mm.datasets.media.media_files import VideoFile
from grpo_mm.datasets.worlds.shape_world import SHAPES, Scene, Split, Thing, render
from grpo_mm.identity import FREE
from grpo_mm.types import Prompt

Style = Literal["direct", "think", "rethink"]
REQUESTS: dict[str, str] = {
    "direct": "Answer directly.",
    "think": "Think first.",
    "rethink": "Think, rethink, answer.",
}
"""What ends a question of the clip and scene worlds, and the form of answer that it asks for."""

COLORS = ("red", "green", "blue", "yellow")
MOTIONS = {"stays": (0, 0), "moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
"""Direction in the picture; y grows downwards."""
ASKED_BY = ("color and shape", "color", "shape", "motion")

FPS = 2
NUM_FRAMES = 18
CELL_PX = 28
"""Frames are two cells wide and one high; each object keeps to its cell, which is one visual token of Qwen2.5-VL."""
LENGTHS = (2, 5)
"""Frames that an object is visible, at least and at most."""
HELD_OUT_PAIRS = 12
"""Pairs of objects in each of monitor and report, of 66."""


@dataclass(frozen=True)
class Actor:
    """Example: Actor("circle", "red", "moves right", first_frame=4, num_frames=3): seen from 2.0 to 3.5 seconds."""

    shape: str
    color: str
    motion: str
    first_frame: int
    num_frames: int
    x: float = 0.5
    """Where it stays, or where it crosses its way if it moves along the other axis; in its cell, 0 left, 1 right."""
    y: float = 0.5
    """0 top, 1 bottom."""
    size: float = 0.5
    """Width and height of its bounding box, in cells."""

    @property
    def span(self) -> tuple[float, float]:
        """Seconds from its first frame to the end of its last."""
        return self.first_frame / FPS, (self.first_frame + self.num_frames) / FPS


@dataclass(frozen=True)
class Clip:
    actors: tuple[Actor, Actor]
    """Left cell, right cell."""
    asked: int
    """Which of them the question is about."""
    asked_by: str
    """One of `ASKED_BY`."""

    @property
    def target(self) -> Actor:
        return self.actors[self.asked]

    @property
    def name(self) -> str:
        """The words by which the question picks its object."""
        actor = self.target
        return {
            "color and shape": f"{actor.color} {actor.shape}",
            "color": f"{actor.color} object",
            "shape": actor.shape,
            "motion": f"object that {actor.motion}",
        }[self.asked_by]

    @property
    def question(self) -> str:
        return f"When does the {self.name} appear?"

    def text(self, style: Style) -> str:
        """The question stands before the clip: a small model then learns to look for what it was asked."""
        return f"{self.question}<video>{REQUESTS[style]}"


def pairs(split: Split) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Unordered pairs of different (color, shape); splits share none."""
    objects = list(itertools.product(COLORS, SHAPES))
    found = list(itertools.combinations(objects, 2))
    random.Random("clip world").shuffle(found)
    start, stop = {
        "monitor": (0, HELD_OUT_PAIRS),
        "report": (HELD_OUT_PAIRS, 2 * HELD_OUT_PAIRS),
        "train": (2 * HELD_OUT_PAIRS, len(found)),
    }[split]
    return found[start:stop]


def random_clip(split: Split, rng: random.Random, *, asked_by: tuple[str, ...] = ASKED_BY) -> Clip:
    """A clip of a pair of the split. The question is of a kind in `asked_by` that tells its two objects apart."""
    while True:
        looks = list(rng.choice(pairs(split)))
        rng.shuffle(looks)
        motions = rng.sample(list(MOTIONS), 2)
        actors = tuple(_actor(*look, motion, rng) for look, motion in zip(looks, motions))
        clip = Clip(actors, asked=rng.randrange(2), asked_by=rng.choice(asked_by))
        if tells_apart(clip, clip.asked_by):
            return clip


def tells_apart(clip: Clip, asked_by: str) -> bool:
    """Whether words of that kind fit only one of the clip's objects."""
    a, b = clip.actors
    return {"color": a.color != b.color, "shape": a.shape != b.shape}.get(asked_by, True)


def _actor(color: str, shape: str, motion: str, rng: random.Random) -> Actor:
    num_frames = rng.randint(*LENGTHS)
    size = rng.uniform(0.45, 0.55)
    low, high = size / 2, 1 - size / 2
    return Actor(
        shape, color, motion, rng.randint(0, NUM_FRAMES - num_frames), num_frames,
        x=rng.uniform(low, high), y=rng.uniform(low, high), size=size,
    )  # fmt: skip


def frames(clip: Clip) -> np.ndarray:
    """uint8 [NUM_FRAMES, CELL_PX, 2 * CELL_PX, 3]."""
    return np.stack(
        [np.concatenate([_cell(actor, frame) for actor in clip.actors], axis=1) for frame in range(NUM_FRAMES)]
    )


def _cell(actor: Actor, frame: int) -> np.ndarray:
    """The actor's part of a frame, [CELL_PX, CELL_PX, 3]; a moving actor crosses its cell while it is visible."""
    along = (frame - actor.first_frame) / (actor.num_frames - 1)
    if not 0 <= along <= 1:
        return render(Scene(()), CELL_PX)
    reach = (1 - actor.size) * (along - 0.5)
    step_x, step_y = MOTIONS[actor.motion]
    x = 0.5 + reach * step_x if step_x else actor.x
    y = 0.5 + reach * step_y if step_y else actor.y
    return render(Scene((Thing(actor.shape, actor.color, x, y, actor.size),)), CELL_PX)


def answer(clip: Clip, style: Style, *, span: tuple[float, float] | None = None) -> str:
    """The demonstration of that form; `span` instead of the true one.

    Example: "<think> the red circle is seen from 2.0 to 5.5 </think><answer>2.0 to 5.5</answer>"
    """
    start, end = span or clip.target.span
    words = f"{start:.1f} to {end:.1f}"
    thinking = {
        "direct": "",
        "think": f"<think> the {clip.name} is seen from {words} </think>",
        "rethink": f"<think> the {clip.name} is seen from {words} </think><rethink> from {words} </rethink>",
    }[style]
    return f"{thinking}<answer>{words}</answer>"


def write_video(frames_FHWC: np.ndarray, path: Path, *, fps: int = FPS) -> None:
    """uint8 frames as a lossless H.264 file (full chroma); written aside, then renamed."""
    import av

    aside = path.with_name(f".{os.getpid()}-{path.name}")
    with av.open(str(aside), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"qp": "0", "preset": "veryfast"})
        stream.height, stream.width = frames_FHWC.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame_HWC in frames_FHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")))
        container.mux(stream.encode())
    os.replace(aside, path)


@dataclass(frozen=True)
class ClipWorld:
    """Questions of one split about clips, which are written into `folder` unless they are there."""

    folder: str = field(default="runs/clip_world", metadata=FREE)
    split: Split = "train"
    count: int = 1024
    style: Style = "direct"

    is_drawn: ClassVar[bool] = True
    """Loading makes media."""

    def phrase(self, query: str) -> str:
        """A question of one's own, asked as these are."""
        return f"{query}<video>{REQUESTS[self.style]}"

    def load(self) -> list[Prompt]:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        return [self._prompt(index) for index in range(self.count)]

    def _prompt(self, index: int) -> Prompt:
        clip = random_clip(self.split, random.Random(f"clip_world/{self.split}/{index}"))
        # Named after what it shows, so that a file of an older world is never taken for this one.
        shown = hashlib.sha256(repr(clip.actors).encode()).hexdigest()[:8]
        path = Path(self.folder) / f"{self.split}-{index:05d}-{shown}.mp4"
        if not path.exists():
            write_video(frames(clip), path)
        return Prompt(
            f"clip_world/{self.split}/{index}",
            clip.text(self.style),
            media=(VideoFile(str(path)),),
            target={
                "spans": [list(clip.target.span)],
                "duration": NUM_FRAMES / FPS,
                "asked_by": clip.asked_by,
                "other_span": list(clip.actors[1 - clip.asked].span),
            },
            demo=answer(clip, self.style),
            source="clip_world",
        )


@dataclass(frozen=True)
class ClipLessons:
    """Draws a clip with several questions and answers of one form about it, a part of which may be wrong."""

    split: Split = "train"
    questions: int = 2
    asked_by: tuple[str, ...] = ASKED_BY
    styles: dict[str, float] = field(default_factory=lambda: {"direct": 8, "think": 3, "rethink": 1})
    """How often each form of answer is asked for."""
    wrong_object: float = 0.0
    """Probability that an answer tells when the other object appears."""
    late_seconds: float = 0.0
    """Start and end are told too late, each by up to that, in half seconds."""

    def __call__(self, rng: random.Random) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """uint8 frames [F, H, W, 3] and (question, answer) pairs."""
        clip = random_clip(self.split, rng, asked_by=self.asked_by)
        style = rng.choices(list(self.styles), weights=self.styles.values())[0]
        asked = [self._ask(clip, style, rng, which % 2) for which in range(self.questions)]
        return frames(clip), asked

    def _ask(self, clip: Clip, style: Style, rng: random.Random, which: int) -> tuple[str, str]:
        clip = replace(
            clip, asked=which, asked_by=rng.choice([kind for kind in self.asked_by if tells_apart(clip, kind)])
        )
        shown = clip.actors[1 - which if rng.random() < self.wrong_object else which]
        start, end = (min(second + self._delay(rng), NUM_FRAMES / FPS) for second in shown.span)
        span = (start, end) if start < end else shown.span
        return clip.text(style), answer(clip, style, span=span)

    def _delay(self, rng: random.Random) -> float:
        return rng.randint(0, round(self.late_seconds * FPS)) / FPS
