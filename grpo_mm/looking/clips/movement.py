"""Figures of a clip's movement that need no network: flicker, how much moves and how far, how evenly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.types import Clip

BLOCK = 8
"""Side of what is followed from frame to frame, in pixels of the picture as it is searched in."""
SEARCHED_PX = 96
"""Longer side of that picture."""
REACH = 6
"""How far it is searched, in those pixels: a block that goes further in one frame is found nearer, or not."""
STILL = 2.0
"""Grey levels: a block that is nearly as like where it was has not moved, so that grain is no movement."""


MOVEMENT = ("motion", "flicker")
"""Figures of a clip that every run keeps."""


def movement_of(clip: Clip) -> dict[str, float]:
    """MOVEMENT of a clip; NaN of one frame."""
    frames = clip.frames_FCHW
    return {"motion": motion(frames, clip.fps), "flicker": flicker(frames)}


def frame_change(frames_FCHW: Tensor) -> Tensor:
    """[F - 1] mean absolute difference of neighbouring frames, in grey levels of 0 to 255."""
    frames = frames_FCHW.float()
    return (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))


def flicker(frames_FCHW: Tensor) -> float:
    """0 where nothing changes, to 1: `frame_change` / 255, averaged; NaN of fewer than two frames.

    Source: 1 - VBench's temporal flickering (arXiv:2311.17982), which is (255 - mean absolute difference) / 255 of clips without motion.
    """
    return float(frame_change(frames_FCHW).mean() / 255) if len(frames_FCHW) > 1 else torch.nan


def interpolation_error(frames_FCHW: Tensor) -> float:
    """0 to 1: how far each frame is from the mean of its two neighbours, absolute / 255; NaN of fewer than three frames."""
    frames = frames_FCHW.float()
    if len(frames) < 3:
        return torch.nan
    return float((frames[1:-1] - (frames[:-2] + frames[2:]) / 2).abs().mean() / 255)


def displacement(frames_FCHW: Tensor) -> Tensor:
    """[F - 1, blocks]: how far each block of a frame has come from the frame before, in shares of the picture's shorter side.

    Each block is looked for within REACH pixels of the picture shrunk to SEARCHED_PX (smaller ones stay), where the sum of absolute
    differences of grey is least; of equal places the nearest counts, and one that is less than STILL grey levels worse where it was
    stays there. Frames that have no whole block have one that is the frame. NaN of fewer than two frames.
    """
    if len(frames_FCHW) < 2:
        return torch.full((0, 1), torch.nan)
    grey = frames_FCHW.float().mean(1, keepdim=True)
    height, width = grey.shape[2:]
    shrink = min(1.0, SEARCHED_PX / max(height, width))
    if shrink < 1:
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        grey = F.interpolate(grey, size, mode="area")
    block = (min(BLOCK, grey.shape[2]), min(BLOCK, grey.shape[3]))
    before, after = grey[:-1], grey[1:]
    padded = F.pad(before, (REACH,) * 4, mode="replicate")
    steps = sorted(
        ((y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)),
        key=lambda s: (s[0] ** 2 + s[1] ** 2, s),
    )
    best = F.avg_pool2d((after - before).abs(), block) - STILL
    moved = torch.zeros_like(best)
    for y, x in steps[1:]:
        there = padded[:, :, REACH - y :, REACH - x :][:, :, : grey.shape[2], : grey.shape[3]]
        cost = F.avg_pool2d((after - there).abs(), block)
        nearer = cost < best
        best, moved = torch.where(nearer, cost, best), torch.where(nearer, (y * y + x * x) ** 0.5, moved)
    return moved.flatten(1) / min(grey.shape[2:])


def motion(frames_FCHW: Tensor, fps: float, *, top: float = 0.05) -> float:
    """How fast that moves which moves most, in shorter sides of the picture a second: 0 of a still; NaN of fewer than two frames.

    Of each pair of frames the mean over the share `top` of the blocks that went furthest (at least one); then the mean over the pairs.

    Source: VBench's dynamic degree (arXiv:2311.17982) takes the largest 5 % of optical flow. Deviates: blocks that are looked for
    instead of RAFT's flow, a measure instead of yes or no, and per second, so that clips of other frame rates compare.
    """
    if len(frames_FCHW) < 2:
        return torch.nan
    moved = displacement(frames_FCHW)
    most = max(1, round(top * moved.shape[1]))
    return float(moved.topk(most, dim=1).values.mean() * fps)
