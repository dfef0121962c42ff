"""A reward of pictures asked about clips: some frames of each, as pictures, and one score of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Clips, Pictures, Prompt, evenly

TAKES: tuple[str, ...] = ("mean", "min")
MOST = 8
"""Frames of a clip that a reward is asked about, unless the setting says otherwise."""
Setting = Literal["mean", "min"] | dict[str, Any] | None
"""As a config says it: mean, min, or {take: mean, at_most: 8}; at_most: null is every frame."""


@dataclass(frozen=True)
class Frames:
    """Example: of 33 frames with at_most = 3, those numbered 0, 16 and 32."""

    take: Literal["mean", "min"]
    at_most: int | None = MOST
    """Frames of a clip, evenly spread, the first and the last among them; None: all."""


def read_frames(said: Setting, *, where: str) -> Frames | None:
    """The setting `frames` of an entry of `rewards` or `watch`.

    Raises:
        ConfigError: it is none of the three forms.
    """
    if said is None:
        return None
    given = {"take": said} if isinstance(said, str) else dict(said)
    take, most = given.get("take", "mean"), given.get("at_most", MOST)
    wrong = set(given) - {"take", "at_most"} or take not in TAKES
    if wrong or not (most is None or (type(most) is int and most >= 1)):
        raise ConfigError(
            f"{where}.frames is {shown(said)}; wanted mean, min, or {{take: mean, at_most: {MOST}}} (at_most: null for every frame)."
        )
    return Frames(take, most)


@dataclass(frozen=True, eq=False)
class Spread:
    """The frames of U clips as V pictures."""

    items: Tensor | Pictures
    prompts: list[Prompt]
    """Of each frame."""
    clip_V: Tensor
    """[V] int64, the clip of each."""
    group_V: Tensor | None
    """[V] int64, for rewards that compare: frames that stand at the same place of the clips of a set."""


def spread(clips: Clips, prompts: Sequence[Prompt], group_U: Tensor | None, frames: Frames) -> Spread:
    """The frames that a reward of pictures is asked about; a clip that is None has none."""
    chosen = [[] if clip is None else evenly(len(clip.frames_FCHW), frames.at_most) for clip in clips]
    pictures = [clips[u].frames_FCHW[i] for u, some in enumerate(chosen) for i in some]
    clip_V = torch.tensor([u for u, some in enumerate(chosen) for _ in some], dtype=torch.int64)
    if len({picture.shape for picture in pictures}) == 1:
        items: Tensor | Pictures = torch.stack(pictures)
    else:
        items = Pictures(pictures)
    group_V = None
    if group_U is not None:
        place_V = torch.tensor([k for some in chosen for k in range(len(some))], dtype=torch.int64)
        most = int(place_V.max()) + 1 if len(place_V) else 1
        group_V = group_U.cpu()[clip_V] * most + place_V
    return Spread(items, [prompts[u] for u in clip_V.tolist()], clip_V, group_V)


def gathered(
    scores: Mapping[str, Tensor], clip_V: Tensor, *, clips: int, take: Literal["mean", "min"]
) -> dict[str, Tensor]:
    """Scores of frames [V] as scores of clips [U].

    The score is NaN where a frame has none: the frame that could not be scored may be the one that counts. A part is that of the
    frames that have it, as parts may not apply to each. The part `worst_frame` is the lowest score of a frame.
    """
    found = {name: _reduced(value, clip_V, clips, take) for name, value in scores.items()}
    lacking = torch.zeros(clips, dtype=torch.bool).index_fill_(0, clip_V[scores["score"].isnan()], True)
    found["score"] = torch.where(lacking, torch.nan, found["score"])
    worst = _reduced(scores["score"], clip_V, clips, "min")
    return found | {"worst_frame": torch.where(lacking, torch.nan, worst)}


def _reduced(value_V: Tensor, clip_V: Tensor, clips: int, take: Literal["mean", "min"]) -> Tensor:
    known = value_V.isfinite()
    index, value = clip_V[known], value_V[known]
    if take == "min":
        low = torch.full((clips,), torch.inf).scatter_reduce(0, index, value.float(), "amin")
        return torch.where(low.isinf(), torch.nan, low)
    total = torch.zeros(clips, dtype=torch.float64).index_add_(0, index, value.double())
    return (total / torch.bincount(index, minlength=clips)).float()
