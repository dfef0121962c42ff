"""How different the samples of one prompt are; falls to 0 when the policy collapses."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_distance(images: Tensor, group_M: Tensor, *, side_px: int = 32) -> Tensor:
    """Mean distance between two pictures of a group.

    Pictures are shrunk to side_px × side_px by averaging, so that what counts is layout and colour rather than grain.
    The distance of two is the root mean square of their difference over pixels and channels, 0 to 1.

    Args:
        images: uint8 [M, 3, H, W], in any order.
        group_M: [M] ints from 0.

    Returns:
        float32 [groups] on the CPU, groups = group_M.max() + 1; NaN for a group with fewer than two pictures.
    """
    small = torch.cat([F.adaptive_avg_pool2d(chunk.float() / 255, side_px) for chunk in images.split(64)])
    flat, group_M = small.flatten(1).cpu(), group_M.cpu()
    mean = torch.full((int(group_M.max()) + 1,), float("nan"))
    for group in group_M.unique().tolist():
        members = flat[group_M == group]
        if len(members) > 1:
            mean[group] = torch.pdist(members).mean() / flat.shape[1] ** 0.5
    return mean


def distinct_share(texts: Sequence[Hashable], prompts: Sequence[int]) -> float:
    """How many of a prompt's texts differ, (different - 1) / (texts - 1), on average over the prompts with two or more.

    1 where all texts of every prompt differ, 0 where each prompt has one answer; NaN without a prompt of two texts.
    """
    said: dict[int, list[Hashable]] = {}
    for text, prompt in zip(texts, prompts, strict=True):
        said.setdefault(prompt, []).append(text)
    shares = [(len(set(own)) - 1) / (len(own) - 1) for own in said.values() if len(own) > 1]
    return sum(shares) / len(shares) if shares else math.nan
