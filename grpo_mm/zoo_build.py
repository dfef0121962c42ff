"""Hands the shape world to the recipes of the zoo: pipelines do not import data."""

from __future__ import annotations

from pathlib import Path

from grpo_mm.errors import UserError


def build(name: str, out: Path, *, seed: int = 0) -> None:
    """Makes the named checkpoint from scratch in `out`, with the curve of its supervised training beside it."""
    if name != "text_to_image":
        raise UserError(f"no recipe {name!r} in the zoo; there is: text_to_image.")
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
