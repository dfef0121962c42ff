"""Contexts of the size that a run's prompts have, for counting: from its data where they could be read, else from its settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from grpo_mm.ledger.entries import Plan
from grpo_mm.pipelines.vlm.models.families import family_of
from grpo_mm.pipelines.vlm.prompting.contexts import Context

TEXT_TOKENS = 256
"""Of a question with its chat template, where no data say more."""
CLIP_SECONDS, CLIP_HEIGHT, CLIP_WIDTH = 60.0, 720, 1280
"""Of a video, where no data say more."""
MOST_TILES = 12
"""That a picture is cut into, by the default of processors that cut tiles."""
PICTURE_PIXELS = 1024 * 1024
"""Of a picture, where neither data nor `policy.image_pixels` say more."""


@dataclass(frozen=True)
class Seen:
    """What the model sees of one prompt."""

    text: int
    visual: int
    grid: tuple[int, int, int] | None
    """Patches in time, height and width."""
    kind: str
    """"video", "image" or ""."""
    said: str

    @property
    def tokens(self) -> int:
        return self.text + self.visual


def assumed(policy: Any, config: Any, plan: Plan) -> Seen:
    """From the media's sampling or the picture's limits, for the model's configuration."""
    vision = config.vision_config
    tile = family_of(config.model_type, path=policy.path).tile(config)
    if tile is not None:
        return _of_tiles(policy, tile, plan)
    side = vision.patch_size * vision.spatial_merge_size
    if plan.media == "video":
        seen = _of_clip(policy, vision, side)
    elif plan.media:
        least, most = policy.image_pixels or (0, PICTURE_PIXELS)
        pixels = most if policy.image_pixels else max(least, PICTURE_PIXELS)
        across = max(1, round(math.sqrt(pixels) / side))
        grid = (1, across * vision.spatial_merge_size, across * vision.spatial_merge_size)
        where = "policy.image_pixels" if policy.image_pixels else "assumed: nothing limits it but the checkpoint"
        seen = Seen(
            TEXT_TOKENS, across**2, grid, "image", f"a picture of {across * side} × {across * side} pixels ({where})"
        )
    else:
        seen = Seen(TEXT_TOKENS, 0, None, "", "texts alone")
    limit = policy.chat.max_prompt_tokens
    if limit is not None and seen.tokens > limit:
        seen = _shortened(seen, limit, vision.spatial_merge_size)
    return seen


def _of_tiles(policy: Any, tile: tuple[int, tuple[int, ...]], plan: Plan) -> Seen:
    """A picture as MOST_TILES tiles with one of the whole, a frame as one."""
    tokens, (_, height, width) = tile
    if plan.media == "video":
        frames = 64
        if hasattr(policy.media, "planned"):
            frames, *_ = policy.media.planned(
                seconds=CLIP_SECONDS, height=CLIP_HEIGHT, width=CLIP_WIDTH, multiple_of=height
            )
        kind, count, said = "video", frames, f"a clip of {CLIP_SECONDS:g} s (assumed), {frames} frames, a tile each"
    elif plan.media:
        kind, count = "image", MOST_TILES + 1
        said = f"a picture of {count} tiles of {height} × {width} pixels (the most that the processor cuts by default)"
    else:
        return Seen(TEXT_TOKENS, 0, None, "", "texts alone")
    limit = policy.chat.max_prompt_tokens
    if kind == "video" and limit is not None and TEXT_TOKENS + count * tokens > limit:
        count = max(1, (limit - TEXT_TOKENS) // tokens)
        said += f", of which policy.chat.max_prompt_tokens leaves {count}"
    return Seen(TEXT_TOKENS, count * tokens, (count, 1, 1), kind, said)


def _of_clip(policy: Any, vision: Any, side: int) -> Seen:
    merge, step = vision.spatial_merge_size, vision.temporal_patch_size
    if hasattr(policy.media, "planned"):
        frames, height, width = policy.media.planned(
            seconds=CLIP_SECONDS, height=CLIP_HEIGHT, width=CLIP_WIDTH, multiple_of=side
        )
        said = f"a clip of {CLIP_SECONDS:g} s (assumed) as policy.media samples it: {frames} frames of {height} × {width} pixels"
    else:
        frames, height, width = 64, 8 * side, 14 * side
        said = f"a clip of {frames} frames of {height} × {width} pixels (assumed)"
    grid = (max(1, -(-frames // step)), height // side * merge, width // side * merge)
    return Seen(TEXT_TOKENS, grid[0] * grid[1] * grid[2] // merge**2, grid, "video", said)


def _shortened(seen: Seen, limit: int, merge: int) -> Seen:
    """Frames go until the prompt fits; a picture stays as it is, and the run would refuse it."""
    if seen.kind != "video" or seen.grid is None:
        return seen
    each = seen.grid[1] * seen.grid[2] // merge**2
    steps = max(1, (limit - seen.text) // each)
    said = f"{seen.said}, of which policy.chat.max_prompt_tokens leaves {steps} steps in time"
    return replace(seen, visual=steps * each, grid=(steps, *seen.grid[1:]), said=said)


def contexts(seen: Seen, config: Any, count: int) -> list[Context]:
    """`count` contexts of that size with media of their own; their pixels take no memory."""
    vision = config.vision_config
    tile = family_of(config.model_type, path="the model").tile(config)
    if tile is not None:
        return [_context_of_tiles(seen, config, tile[1], number) for number in range(count)]
    width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    made = []
    for number in range(count):
        ids = torch.full((seen.tokens,), 5)
        ids[0] = number % 1000  # prompts that begin alike would be read together
        inputs: dict[str, torch.Tensor] = {}
        if seen.grid is not None:
            token = config.video_token_id if seen.kind == "video" else config.image_token_id
            ids[8 : 8 + seen.visual] = token
            pixels = "pixel_values_videos" if seen.kind == "video" else "pixel_values"
            inputs[pixels] = torch.full((1, 1), float(number)).expand(math.prod(seen.grid), width)
            inputs[f"{seen.kind}_grid_thw"] = torch.tensor([seen.grid])
        types = torch.zeros_like(ids)
        if seen.grid is not None:
            types[8 : 8 + seen.visual] = 1 if seen.kind == "image" else 2
        inputs["mm_token_type_ids"] = types[None]
        made.append(Context(f"counted {number}", ids, torch.arange(seen.tokens).expand(3, -1), inputs))
    return made


def _context_of_tiles(seen: Seen, config: Any, pixels: tuple[int, ...], number: int) -> Context:
    ids = torch.full((seen.tokens,), 5)
    ids[0] = number % 1000
    inputs: dict[str, torch.Tensor] = {}
    if seen.grid is not None:
        ids[8 : 8 + seen.visual] = config.image_token_id
        inputs["pixel_values"] = torch.full((1, 1, 1, 1), float(number)).expand(seen.grid[0], *pixels)
    inputs["mm_token_type_ids"] = (ids == config.image_token_id).long()[None]
    return Context(f"counted {number}", ids, torch.arange(seen.tokens).expand(3, -1), inputs)
