"""Tiny checkpoints of Wan's forms as models that tests train, and clips scored by their colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from test_flow_models import PROMPTS, Model, run_config
from tiny_wan import BUILDERS
from torch import Tensor

from grpo_mm.config.run_config import RunConfig, Scorer, Source
from grpo_mm.pipelines.flow.clips.wan import Wan
from grpo_mm.pipelines.flow.clips.wan_i2v import WanI2V
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.own_schedule import followed
from grpo_mm.rollout.rows import plan_rows
from grpo_mm.types import Clips, Prompt

FORMS = {
    "t2v": (Wan, "t2v"), "i2v": (WanI2V, "i2v"), "flf": (WanI2V, "flf"), "5b": (Wan, "5b"), "5b_i2v": (WanI2V, "5b"),
    "a14b": (Wan, "a14b"), "a14b_i2v": (WanI2V, "a14b_i2v"),
}  # fmt: skip
"""Form -> (family, checkpoint)."""
SIZE = (5, 32, 64)


@cache
def checkpoint(kind: str, folder: Path) -> str:
    return str(BUILDERS[kind](folder / kind))


def picture(number: int) -> Image.Image:
    pixels = torch.randint(0, 256, (4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    return Image.fromarray(pixels.numpy()).resize((60, 40))


@dataclass(frozen=True)
class ListedPrompts:
    pictures: int = 0

    def load(self) -> list[Prompt]:
        return [
            Prompt(p.id, p.text, media=tuple(picture(10 * i + j) for j in range(self.pictures)))
            for i, p in enumerate(PROMPTS)
        ]


@dataclass(frozen=True)
class Redness:
    def __call__(self, items: Any, prompts: Sequence[Prompt]) -> Tensor:
        assert isinstance(items, Clips)
        frames = [clip.frames_FCHW.float() for clip in items]
        return torch.stack([(one[:, 0] - one[:, 2]).mean() / 255 for one in frames])


@dataclass(frozen=True)
class WanModel(Model):
    """`kind` is a form; `path` the checkpoint."""

    settings: tuple[tuple[str, Any], ...] = ()
    """Of the family."""

    @property
    def family(self):
        return FORMS[self.kind][0](self.path, **dict(self.settings))

    @property
    def guidance(self) -> float:
        return 4.0

    def config(self, **settings):
        length = 512 if "i2v" in self.kind or self.kind == "flf" else 16
        frames, height, width = SIZE
        given = dict(text_length=length, frames=frames, height=height, width=width, decode_batch=4)
        return super().config(**(given | settings))

    def engine(self, **settings) -> FlowEngine:
        return FlowEngine(**(dict(steps=3, eval_steps=3) | settings))

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(ListedPrompts(self.family.pictures[0]).load())

    def rows(self, group_size: int):
        return plan_rows(self.prompts, group_size=group_size, parts=1)[0]

    def pipeline(self, path: str | Path | None = None):
        """The plain pipeline, with the scheduler that is followed."""
        import diffusers

        pipe = getattr(diffusers, self.family.pipeline).from_pretrained(path or self.path)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = followed(pipe.scheduler)
        return pipe

    def run(self, runs_dir: Path, **settings) -> RunConfig:
        return run_config(
            self,
            runs_dir,
            **{
                "prompts": {"listed": Source(ListedPrompts(self.family.pictures[0]))},
                "rewards": {"red": Scorer(Redness())},
                "group_size": 2,
            }
            | settings,
        )
