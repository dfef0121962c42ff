"""Which frames of a clip a model sees, and at what size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from grpo_mm.errors import ConfigError

GRID = 28
"""What sides are multiples of where no model says."""


@dataclass(frozen=True)
class FrameGrid:
    """What a model's own preparation makes of frames."""

    multiple_of: int
    frame_pixels: tuple[int, int] | None = None
    """Least and most of a frame."""
    clip_pixels: tuple[int, int] | None = None
    """Least and most of all frames of a clip together."""


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
    """Frames of a video, at least."""
    max_frames: int | None = 768
    """Frames of a video, at most; null: no bound."""
    max_pixels_total: int | None = 3584 * 28 * 28
    """Budget of a clip; frames that share a temporal patch count once, as in the Qwen tools. None: no budget."""
    min_pixels_total: int = 0
    """Frames of a clip that would have fewer pixels together are enlarged; counted as in `max_pixels_total`."""
    min_pixels_frame: int = 16 * 28 * 28
    """Smaller frames are enlarged to this."""
    max_pixels_frame: int = 768 * 28 * 28
    """Pixels of a frame, at most."""
    multiple_of: int | None = None
    """Height and width are multiples of this: patch size × merge size of the model. None: of the model that sees the frames
    (28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL), 28 where there is none. A model refuses what is no multiple of its own."""
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
        if (self.multiple_of or 1) < 1 or self.multiple_of == 0 or self.temporal_patch < 1:
            raise ConfigError(f"multiple_of = {self.multiple_of}, temporal_patch = {self.temporal_patch}: at least 1.")
        if self.max_frames is not None and self.max_frames < self.min_frames:
            raise ConfigError(f"max_frames = {self.max_frames} is below min_frames = {self.min_frames}.")
        if self.max_pixels_frame < self.min_pixels_frame:
            raise ConfigError(f"max_pixels_frame = {self.max_pixels_frame} is below min_pixels_frame.")

    def fitted(self, model: FrameGrid) -> FrameSampling:
        """With what a model takes: its multiple, and the pixels that it shrinks or enlarges frames to, so that it need not.

        Where both have a bound the narrower one holds, and the model's if they exclude each other.

        Raises:
            ConfigError: `multiple_of` is given, and is no multiple of the model's.
        """
        side = self.multiple_of or model.multiple_of
        if side % model.multiple_of:
            raise ConfigError(
                f"the sampling of frames has multiple_of = {side}, but the model's patches make frames multiples of "
                f"{model.multiple_of} pixels: they would be resized twice. Leave it out, or set it to {model.multiple_of}."
            )
        found = replace(self, multiple_of=side)
        if model.frame_pixels is not None:
            least, most = model.frame_pixels
            most = min(found.max_pixels_frame, most)
            return replace(found, max_pixels_frame=most, min_pixels_frame=min(max(found.min_pixels_frame, least), most))
        if model.clip_pixels is not None:
            least, most = (pixels // self.temporal_patch for pixels in model.clip_pixels)
            most = most if self.max_pixels_total is None else min(self.max_pixels_total, most)
            least = min(max(self.min_pixels_total, least), most)
            smallest = min(self.min_pixels_frame, most)
            return replace(found, max_pixels_total=most, min_pixels_total=least, min_pixels_frame=smallest)
        return found

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
        smallest = max(sampling.min_pixels_frame, math.ceil(sampling.min_pixels_total / math.ceil(count / patch)))
        size = frame_size(height, width, sampling, largest, smallest)
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


def frame_size(
    height: int, width: int, sampling: FrameSampling, largest: int, smallest: int | None = None
) -> tuple[int, int]:
    """Height and width in multiples of `multiple_of`, near the shape of the video, between smallest and largest area.

    The smallest area goes before the largest. A side is at least one multiple, which may exceed `largest` for very
    long and narrow pictures.
    """
    m, smallest = sampling.multiple_of or GRID, sampling.min_pixels_frame if smallest is None else smallest
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
