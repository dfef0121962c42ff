"""Conditions of prompts: what they are kept by, how many are kept, and network calls of rows whose pictures are alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.family import Size
from grpo_mm.types import Clips, Pictures, Prompt

GREY_PX = 512
MOST_KEPT = 1024
MOST_BYTES = 8 * 2**30
"""Of conditions of prompts with pictures, which may take tens of megabytes each."""


def key_of(prompt: Prompt, pictures: Sequence[Any], size: Size) -> Any:
    """What a prompt's condition follows from: its text alone; with pictures (PIL), their pixels and the size that is drawn too."""
    if not pictures:
        return prompt.text
    pixels = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        pixels.update(f"{picture.mode} {picture.size} ".encode())
        pixels.update(picture.tobytes())
    return prompt.text, pixels.hexdigest(), size


def stand_ins_for(prompt: Prompt) -> list[Any]:
    """Grey pictures in place of a prompt's, PIL, so that the others of a batch can be drawn."""
    from PIL import Image

    return [Image.new("RGB", (GREY_PX, GREY_PX), "grey") for _ in prompt.media]


def without_unreadable(items: Any, prompts: Sequence[Prompt], unreadable: Collection[str]) -> Any:
    """Pictures or clips as `decode` gives them, one for each of the prompts; None for those of unreadable prompts."""
    bad = [prompt.id in unreadable for prompt in prompts]
    if not any(bad):
        return items
    kind = Clips if isinstance(items, Clips) else Pictures
    return kind(None if is_bad else item for item, is_bad in zip(items, bad, strict=True))


def forget_oldest(kept: dict[Any, Mapping[str, Tensor]]) -> None:
    """Leaves at most MOST_KEPT conditions, and of those with pictures at most MOST_BYTES."""
    while len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]
    pictured = {key: sum(v.nbytes for v in one.values()) for key, one in kept.items() if not isinstance(key, str)}
    total = sum(pictured.values())
    for key, size in pictured.items():
        if total <= MOST_BYTES:
            return
        total -= size
        del kept[key]


def by_kind(
    call: Callable[..., tuple[Tensor, Tensor | None]],
    kind_nG: Tensor,
    x: Tensor,
    sigma: Tensor,
    condition: Mapping[str, Tensor],
    of_none: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """`call(x, sigma, condition, of_none)` on the rows of each kind (int64 [n, G]), put together in the order of the rows.

    Rows of one kind are called at once and unchanged, so that a batch of prompts with alike pictures is one network call.
    """
    kinds, kind = torch.unique(kind_nG, dim=0, return_inverse=True)
    if len(kinds) < 2:
        return call(x, sigma, condition, of_none)
    rows = [torch.nonzero(kind == k).flatten() for k in range(len(kinds))]
    said = [
        call(x[row], sigma[row], {k: v[row] for k, v in condition.items()}, None if of_none is None else of_none[row])
        for row in rows
    ]
    back = torch.argsort(torch.cat(rows))
    halves = [half for _, half in said if half is not None]
    return torch.cat([velocity for velocity, _ in said])[back], torch.cat(halves)[back] if halves else None
