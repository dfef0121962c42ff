"""What rewards take for clips: frames with their rate, as uint8; never a guess of how fast they follow each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import finite_number, shown
from grpo_mm.types import Clip, Clips


def takes_clips(score: Callable[..., Any]) -> Callable[..., Any]:
    """For the `__call__` of a reward of clips: it is handed a list of sound `Clip`; what is none (None) gets NaN.

    Raises:
        UserError: as `ready_clips`; another number of prompts.
    """

    @functools.wraps(score)
    def scored(self: Any, items: Any, prompts: Sequence[Any]) -> dict[str, Tensor]:
        clips = ready_clips(items, who=type(self).__name__)
        if len(prompts) != len(clips):
            raise UserError(f"{len(clips)} clips and {len(prompts)} prompts; wanted one prompt for each clip.")
        index = torch.tensor([i for i, clip in enumerate(clips) if clip is not None], dtype=torch.int64)
        found: dict[str, Tensor] = {"score": torch.full((len(clips),), torch.nan)}
        if len(index):
            parts = score(self, [clips[i] for i in index.tolist()], [prompts[i] for i in index.tolist()])
            for name, value in parts.items():
                value = torch.as_tensor(value, dtype=torch.float32).cpu()
                found.setdefault(name, torch.full((len(clips),), torch.nan))[index] = value
        return found

    scored.takes = "clips"  # type: ignore[attr-defined]
    return scored


def ready_clips(items: Any, *, who: str) -> list[Clip | None]:
    """The clips of `Clips`, checked.

    Raises:
        UserError: pictures or texts; a clip without frames, of other numbers than uint8 [F, 3, H, W], or without a rate above 0.
    """
    if not isinstance(items, Clips):
        form = f"{items.dtype} {list(items.shape)}" if isinstance(items, Tensor) else type(items).__name__
        raise UserError(
            f"{who} scores clips, and these are {form}; wanted grpo_mm.types.Clips, frames with their rate."
        )
    for clip in items:
        if clip is None:
            continue
        frames = getattr(clip, "frames_FCHW", None)
        right = isinstance(frames, Tensor) and frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[1] == 3
        if not right or not frames.numel():
            form = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, Tensor) else shown(clip, 80)
            raise UserError(f"{who}: a clip is {form}; wanted uint8 [F, 3, H, W] with at least one frame.")
        if not (finite_number(clip.fps) or 0) > 0:
            raise UserError(f"{who}: a clip has {shown(clip.fps)} frames a second; wanted above 0.")
    return list(items)
