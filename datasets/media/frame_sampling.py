"""Which frames of a clip a model sees, and at what size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grpo_mm.errors import ConfigError


@dataclass(frozen=True)
class FrameSampling:
    """How many frames of a clip are shown, and how large.

    Frames lie on the regular grid 0, 1/fps, 2/fps, … seconds from the start of the clip; at each of these moments the
    frame is taken that is on the screen, so position k of the model stands for k/fps seconds whatever the rate of the
    file. If there are fewer frames than the grid asks for, or a limit cuts their number, the grid becomes coarser and
    still covers the clip.

    Where the budget does not hold all frames at their smallest size, frames are left out; none is ever cut.
    Example: the defaults and a clip of 300 s. 2 fps would be 600 frames; the budget holds 224 pairs of 16 · 28 · 28 pixels,
    so 448 frames stay, one every 0.67 s.

    Source: sizes as in the Qwen tools; budgets of Time-R1 (arXiv:2503.13377, code) and TempSamp-R1 (arXiv:2509.18056);
    TempSamp-R1's text says "per frame", where we read "per video": uncertain.
    """

    fps: float | None = 2.0
    """Frames a second; without effect if `frames` is given."""
    frames: int | None = None
    """A fixed number of frames, evenly over the clip."""
    min_frames: int = 1
    max_frames: int | None = 768
    max_pixels_total: int | None = 3584 * 28 * 28
    """Budget of a clip; frames that share a temporal patch count once, as in the Qwen tools. None: no budget."""
    min_pixels_frame: int = 16 * 28 * 28
    """Smaller frames are enlarged to this."""
    max_pixels_frame: int = 768 * 28 * 28
    multiple_of: int = 28
    """Height and width are multiples of this: patch size × merge size of the model (28; 32 for Qwen3-VL)."""
    temporal_patch: int = 2
    """Frames that share a visual token; the number of frames is rounded down to a multiple, if there are that many."""

    def __post_init__(self) -> None:
        if self.frames is None and self.fps is None:
            raise ConfigError("frame sampling needs fps or frames; both are null.")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ConfigError(f"fps = {self.fps}, wanted a number above 0.")
        for name in ("frames", "min_frames", "max_frames", "max_pixels_total", "min_pixels_frame", "max_pixels_frame"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}, wanted at least 1.")
        if self.multiple_of < 1 or self.temporal_patch < 1:
            raise ConfigError(f"multiple_of = {self.multiple_of}, temporal_patch = {self.temporal_patch}: at least 1.")
        if self.max_frames is not None and self.max_frames < self.min_frames:
            raise ConfigError(f"max_frames = {self.max_frames} is below min_frames = {self.min_frames}.")
        if self.max_pixels_frame < self.min_pixels_frame:
            raise ConfigError(f"max_pixels_frame = {self.max_pixels_frame} is below min_pixels_frame.")

    def holds_a_square(self) -> bool:
        """Whether the budget has room for one square frame: if so, a video that does not fit is of an odd shape."""
        height, width = frame_size(1000, 1000, self, self.min_pixels_frame)
        return self.max_pixels_total is None or height * width <= self.max_pixels_total


@dataclass(frozen=True)
class FramePlan:
    """`count` frames on a grid of `fps` a second, each [height, width]."""

    count: int
    fps: float
    height: int
    width: int


def plan_frames(sampling: FrameSampling, *, duration: float, available: int, height: int, width: int) -> FramePlan:
    """What `sampling` makes of a clip of `duration` seconds with `available` frames of `height` × `width` pixels.

    Raises:
        ConfigError: the budget does not hold a single frame of the smallest size.
    """
    patch = sampling.temporal_patch
    wanted = sampling.frames or math.ceil(duration * (sampling.fps or 0) - 1e-6)
    count = max(wanted, sampling.min_frames, 1)
    if sampling.max_frames is not None:
        count = min(count, sampling.max_frames)
    count = _whole_patches(min(count, available), patch)
    while True:
        largest = sampling.max_pixels_frame
        if sampling.max_pixels_total is not None:
            largest = min(largest, sampling.max_pixels_total // math.ceil(count / patch))
        size = frame_size(height, width, sampling, largest)
        if sampling.max_pixels_total is None:
            break
        affordable = sampling.max_pixels_total // (size[0] * size[1])  # patches of this size
        if math.ceil(count / patch) <= affordable:
            break
        count = affordable * patch
        if count < 1:
            raise ConfigError(
                f"max_pixels_total = {sampling.max_pixels_total} does not hold one frame of {size[0]} × {size[1]} pixels, "
                f"the smallest for a video of {height} × {width}; raise it or lower min_pixels_frame."
            )
    # Only the last, incomplete patch fell away: the rate is the one asked for.
    kept_rate = sampling.frames is None and count == _whole_patches(wanted, patch)
    fps = float(sampling.fps) if kept_rate and sampling.fps is not None else count / duration
    return FramePlan(count, fps, *size)


def frame_size(height: int, width: int, sampling: FrameSampling, largest: int) -> tuple[int, int]:
    """Height and width in multiples of `multiple_of`, near the shape of the video, between smallest and largest area.

    The smallest area goes before the largest. A side is at least one multiple, which may exceed `largest` for very
    long and narrow pictures.
    """
    m, smallest = sampling.multiple_of, sampling.min_pixels_frame
    largest = max(largest, smallest)
    sides = tuple(max(m, round(side / m) * m) for side in (height, width))
    if sides[0] * sides[1] > largest:
        scale = math.sqrt(largest / (height * width))
        return tuple(max(m, math.floor(side * scale / m + 1e-9) * m) for side in (height, width))
    if sides[0] * sides[1] < smallest:
        scale = math.sqrt(smallest / (height * width))
        return tuple(math.ceil(side * scale / m - 1e-9) * m for side in (height, width))
    return sides


def _whole_patches(count: int, patch: int) -> int:
    return count - count % patch if count >= patch else count
