"""Rows as a user may have them, with their pictures and clips: drawn by the worlds, the same at every call."""

from __future__ import annotations

import random
from pathlib import Path

from grpo_mm.datasets.worlds.clip_world import frames, random_clip, write_video
from grpo_mm.datasets.worlds.scene_world import picture, random_question
from grpo_mm.datasets.worlds.shape_world import Split, prompts
from grpo_mm.starters.readers import Row

MEDIA = {"vqa": "pictures", "video": "clips"}
"""Kind -> the folder of its media."""
FIRST = {"train": 0, "report": 100}
"""Numbers of the media of a split."""


def media_files(kind: str, split: Split, count: int) -> list[str]:
    """The names, within the starter's folder, of what `draw_rows` writes."""
    ending = {"vqa": "png", "video": "mp4"}.get(kind)
    return [f"{MEDIA[kind]}/{FIRST[split] + i:03d}.{ending}" for i in range(count)] if ending else []


def draw_rows(kind: str, folder: Path, split: Split, count: int) -> list[Row]:
    """`count` rows of a split; their media are written below `folder`."""
    if kind == "image":
        return [{"prompt": prompt.text} for prompt in prompts(split)[:count]]
    (folder / MEDIA[kind]).mkdir(exist_ok=True)
    draw = _question if kind == "vqa" else _clip
    return [
        draw(folder, name, split, random.Random(f"starter/{kind}/{split}/{i}"))
        for i, name in enumerate(media_files(kind, split, count))
    ]


def _question(folder: Path, name: str, split: Split, rng: random.Random) -> Row:
    from PIL import Image

    question = random_question(split, rng.choice(("color", "relation", "count")), rng)
    Image.fromarray(picture(question.scene)).save(folder / name)
    return {"image": name, "question": question.text("direct").partition("<image>")[0], "answer": question.answer}


def _clip(folder: Path, name: str, split: Split, rng: random.Random) -> Row:
    clip = random_clip(split, rng)
    write_video(frames(clip), folder / name)
    start, end = clip.target.span
    return {"video": name, "query": clip.question, "start": start, "end": end}
