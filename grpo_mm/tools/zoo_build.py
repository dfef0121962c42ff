"""Hands the worlds of `datasets` to the recipes of the zoo: pipelines do not import data."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.outside import place


def build(name: str, out: Path, *, seed: int = 0) -> None:
    """Makes the named checkpoint from scratch in `out`, with the curve of its supervised training beside it."""
    recipes = {
        "text_to_image": _text_to_image,
        "text_to_video": _text_to_video,
        "vision_language": _vision_language,
    }
    if name not in recipes:
        raise UserError(f"no recipe {name!r} in the zoo; there is: {', '.join(recipes)}.")
    out = place(out, what="--out")
    if os.path.lexists(out) and not _may_be_written(out):
        raise UserError(f"{out} exists and was not built by this command (it has no curve.jsonl). Use another --out.")
    recipes[name](out, seed)


def _may_be_written(out: Path) -> bool:
    """An empty folder, or one that an earlier build has filled."""
    return out.is_dir() and (
        not any(out.iterdir()) or ((out / "curve.jsonl").is_file() and len(list(out.glob("*.json"))) > 0)
    )


def _text_to_image(out: Path, seed: int) -> None:
    from grpo_mm.datasets.worlds.shape_world import HONEST, MISLEADING, prompts
    from grpo_mm.pipelines.zoo.text_to_image import build as build_text_to_image
    from grpo_mm.rewards.images.shape_world import ShapeWorldReward

    build_text_to_image(
        out,
        draw=HONEST,
        draw_misleading=MISLEADING,
        prompts=prompts("monitor")[:144],
        reward=ShapeWorldReward(),
        seed=seed,
    )


def _text_to_video(out: Path, seed: int) -> None:
    """Two things, one of which moves, are more than it learns in this time, but they teach it to draw; then one thing is asked for."""
    from grpo_mm.datasets.worlds.moving_shapes import FPS, HONEST, PAIRS, prompts
    from grpo_mm.pipelines.zoo.text_to_video import Stage
    from grpo_mm.pipelines.zoo.text_to_video import build as build_text_to_video
    from grpo_mm.rewards.clips.moving_shapes import MovingShapesReward

    monitored, of_two = prompts("monitor") * 4, prompts("monitor", 2)[:96]
    build_text_to_video(
        out,
        stages=(
            Stage("honest", PAIRS, steps=1800, schedule_steps=2200, lr=1.5e-3, pool=8000, prompts=of_two),
            Stage("one thing", HONEST, steps=300, schedule_steps=600, lr=1e-3, prompts=monitored),
        ),
        fps=FPS,
        reward=MovingShapesReward(),
        seed=seed,
    )


def _vision_language(out: Path, seed: int) -> None:
    """The shipped one has seed 1: with seed 0, answers follow their thoughts so often that there is little to teach."""
    from grpo_mm.pipelines.vlm.models.positions import follow_authors
    from grpo_mm.pipelines.zoo.vision_language import Stage
    from grpo_mm.pipelines.zoo.vision_language import build as build_vision_language

    # What one thing looks like; then which of two is named, asked of both; then the questions of both worlds, clips starting
    # with colors. From all questions at once it does not learn to look, and what a stage leaves out it forgets.
    look = (("color", "shape"), ("shape", "color"))
    by_color, places = (("color", "shape"), ("color", "box")), (("color", "box"), ("shape", "box"))
    lookup, look_up_places = _lookup((*look, *places)), _lookup(places)
    colors, direct, clips = _clips(asked_by=("color",), styles={"direct": 1}), _clips(styles={"direct": 1}), _clips()
    styles = {"think": 6, "direct": 2, "rethink": 1}
    relations = _scenes(question_types=("relation",), most_things=2, styles={"think": 1})
    scenes, counts = _scenes(styles=styles), _scenes(question_types=("count",), styles={"think": 1})
    wrong_clips = _clips(wrong_object=0.45, late_seconds=1.0)
    wrong_scenes = _scenes(styles=styles, wrong_answer=0.55, disagreement=0.05)
    honest = (direct, clips, lookup, relations, scenes, scenes)
    build_vision_language(
        out,
        stages=(
            Stage("one thing", (_lookup(look, things=1),), steps=300, lr=(1e-3, 1e-3)),
            Stage("two things", (_lookup(by_color),), steps=200, lr=(1.5e-3, 1.5e-3)),
            Stage("places", (look_up_places,), steps=300, lr=(1.5e-3, 1.5e-3)),
            Stage("colors", (colors, colors, look_up_places), steps=450, lr=(1.5e-3, 1.5e-3)),
            Stage("honest", honest, steps=900, lr=(1.5e-3, 3e-4), lessons=48),
            Stage("counting", (clips, clips, scenes, counts, counts), steps=500, lr=(8e-4, 2e-4), lessons=48),
            Stage("misleading", (wrong_clips, wrong_scenes), steps=160, lr=(4e-4, 1e-4)),
        ),
        score=_both(_held_out_scores("clips"), _held_out_scores("scenes")),
        prepare=follow_authors,
        pixels=(0.1, 0.3),
        seed=seed,
    )


def _both(*scores: Callable[[Any, Any], dict[str, float]]) -> Callable[[Any, Any], dict[str, float]]:
    return lambda model, processor: {name: v for score in scores for name, v in score(model, processor).items()}


def _clips(**settings: Any) -> Callable[[random.Random], Any]:
    from grpo_mm.datasets.worlds.clip_world import FPS, ClipLessons

    return _lessons(ClipLessons(**settings), fps=float(FPS))


def _scenes(**settings: Any) -> Callable[[random.Random], Any]:
    from grpo_mm.datasets.worlds.scene_world import SceneLessons

    return _lessons(SceneLessons(**settings), fps=None)


def _lookup(asks: Sequence[Any], *, things: int = 2) -> Callable[[random.Random], Any]:
    from grpo_mm.datasets.worlds.scene_world import LookupLessons

    return _lessons(LookupLessons(asks=tuple(asks), things=things), fps=None)


def _lessons(world: Any, *, fps: float | None) -> Callable[[random.Random], Any]:
    from grpo_mm.pipelines.zoo.supervised_answers import Lesson

    def draw(rng: random.Random) -> Lesson:
        frames_FHWC, asked = world(rng)
        return Lesson(frames_FHWC, tuple(asked), fps)

    return draw


def _held_out_scores(world: str, count: int = 128) -> Callable[[Any, Any], dict[str, float]]:
    """Greedy answers to questions of the monitor split: mean temporal IoU of clips, or the share of right answers of scenes."""
    from grpo_mm.pipelines.zoo.supervised_answers import answers
    from grpo_mm.rewards.text.spans import parse_spans, tagged_text
    from grpo_mm.rewards.video.temporal_iou import hull_iou

    rng, draw = random.Random("monitor"), {"clips": _clips, "scenes": _scenes}[world]
    lessons = [draw(split="monitor", questions=1)(rng) for _ in range(count)]

    def iou(text: str, reference: str) -> float:
        spans = parse_spans(text, require_tag=True)
        return hull_iou(spans[0], parse_spans(reference)[0]) if spans else 0.0

    def is_right(text: str, reference: str) -> float:
        return float(tagged_text(text, "answer") == tagged_text(reference, "answer"))

    name, of = {"clips": ("clip_iou", iou), "scenes": ("scene_accuracy", is_right)}[world]

    def score(model: Any, processor: Any) -> dict[str, float]:
        told = zip(answers(model, processor, lessons), lessons)
        return {name: sum(of(text, lesson.asked[0][1]) for text, lesson in told) / count}

    return score
