"""Hands the worlds of `datasets` to the recipes of the zoo: pipelines do not import data."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_mm.errors import UserError


def build(name: str, out: Path, *, seed: int = 0) -> None:
    """Makes the named checkpoint from scratch in `out`, with the curve of its supervised training beside it."""
    recipes = {"text_to_image": _text_to_image, "vision_language": _vision_language}
    if name not in recipes:
        raise UserError(f"no recipe {name!r} in the zoo; there is: {', '.join(recipes)}.")
    recipes[name](out, seed)


def _text_to_image(out: Path, seed: int) -> None:
    from grpo_mm.datasets.shape_world import HONEST, MISLEADING, prompts
    from grpo_mm.pipelines.zoo.text_to_image import build as build_text_to_image
    from grpo_mm.rewards.shape_world import ShapeWorldReward

    build_text_to_image(
        out,
        draw=HONEST,
        draw_misleading=MISLEADING,
        prompts=prompts("monitor")[:144],
        reward=ShapeWorldReward(),
        seed=seed,
    )


def _vision_language(out: Path, seed: int) -> None:
    from grpo_mm.pipelines.zoo.vision_language import Stage
    from grpo_mm.pipelines.zoo.vision_language import build as build_vision_language

    # Learning to look starts with colors and with two things a picture; from the full worlds it does not start at all.
    colors = (_clips(asked_by=("color",), styles={"direct": 1}),)
    places = _scenes(question_types=("relation",), most_things=2, styles={"think": 1})
    two_things = (_clips(styles={"direct": 1}), places, places)
    honest = (_clips(), _scenes(), _scenes())
    wrong = _clips(wrong_object=0.45, shift_seconds=0.5)
    misleading = (wrong, wrong, _scenes(wrong_answer=0.3, disagreement=0.25))
    build_vision_language(
        out,
        stages=(
            Stage("colors", colors, steps=350, lr=(2e-3, 2e-3)),
            Stage("two things", two_things, steps=450, lr=(2e-3, 2e-3)),
            Stage("honest", honest, steps=400, lr=(2e-3, 1e-3)),
            Stage("misleading", misleading, steps=120, lr=(5e-4, 1e-4)),
        ),
        score=_held_out_scores(),
        seed=seed,
    )


def _clips(**settings: Any) -> Callable[[random.Random], Any]:
    from grpo_mm.datasets.clip_world import FPS, ClipLessons

    return _lessons(ClipLessons(**settings), fps=float(FPS))


def _scenes(**settings: Any) -> Callable[[random.Random], Any]:
    from grpo_mm.datasets.scene_world import SceneLessons

    return _lessons(SceneLessons(**settings), fps=None)


def _lessons(world: Any, *, fps: float | None) -> Callable[[random.Random], Any]:
    from grpo_mm.pipelines.zoo.supervised_answers import Lesson

    def draw(rng: random.Random) -> Lesson:
        frames_FHWC, asked = world(rng)
        return Lesson(frames_FHWC, tuple(asked), fps)

    return draw


def _held_out_scores(count: int = 128) -> Callable[[Any, Any], dict[str, float]]:
    """Greedy answers to questions of the monitor splits: mean temporal IoU of clips, right answers of scenes."""
    from grpo_mm.pipelines.zoo.supervised_answers import answers
    from grpo_mm.rewards.spans import parse_spans, tagged_text
    from grpo_mm.rewards.temporal_iou import hull_iou

    rng = random.Random("monitor")
    clips = [_clips(split="monitor", questions=1)(rng) for _ in range(count)]
    scenes = [_scenes(split="monitor", questions=1)(rng) for _ in range(count)]

    def iou(text: str, reference: str) -> float:
        spans = parse_spans(text, require_tag=True)
        return hull_iou(spans[0], parse_spans(reference)[0]) if spans else 0.0

    def score(model: Any, processor: Any) -> dict[str, float]:
        ious = [iou(text, clip.asked[0][1]) for text, clip in zip(answers(model, processor, clips), clips)]
        told = zip(answers(model, processor, scenes), scenes)
        right = [tagged_text(text, "answer") == tagged_text(scene.asked[0][1], "answer") for text, scene in told]
        return {"clip_iou": sum(ious) / count, "scene_accuracy": sum(right) / count}

    return score
