"""Videos and pictures by path, and frames decoded from them with the times at which they are shown."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grpo_mm.datasets.media.frame_sampling import FrameSampling, plan_frames
from grpo_mm.datasets.media.pictures import open_picture
from grpo_mm.datasets.media.video_decoders import decode_with_decord, decode_with_pyav
from grpo_mm.datasets.media.video_index import VideoError, VideoIndex, scan_video
from grpo_mm.errors import ConfigError

__all__ = ["Decoder", "FrameSampling", "Frames", "ImageFile", "VideoError", "VideoFile", "read_video"]

Decoder = Literal["auto", "decord", "pyav"]
SAME_MOMENT = 1e-6
"""Seconds; below any frame's duration, above the rounding of a time stamp."""
SAME_PICTURE = 1.0
"""Mean difference of a frame, of 255, up to which two decoders agree; theirs is 0 for most codecs."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoFile:
    """A video, or a part of it.

    Example: VideoFile("videos/AO8RW.mp4", start=2.0, end=10.5)
    """

    path: str
    start: float | None = None
    """Seconds from the first frame; None: from the start."""
    end: float | None = None
    """None, or later than the video lasts: to its end."""

    is_video: ClassVar[bool] = True


@dataclass(frozen=True)
class ImageFile:
    """A picture."""

    path: str

    def open(self) -> Any:
        """In RGB, as a viewer shows it; raises PictureError."""
        return open_picture(self.path)


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a clip. Shared by all who ask for them: do not write into the tensors.

    Example: 10 seconds at 2 fps: frames_FCHW [20, 3, 280, 504], time_F = [0, 0.5, …, 9.5], fps = 2.0, duration = 10.0.
    """

    frames_FCHW: Tensor
    """[F, 3, H, W] uint8 RGB."""
    time_F: Tensor
    """[F] float64 seconds from the start of the clip: when each frame really appears, by the file's time stamps."""
    index_F: Tensor
    """[F] int64, number of each frame in the file, in the order they are shown. May repeat where the file has gaps."""
    fps: float
    """Of these frames: frame k stands for the moment k / fps."""
    duration: float
    """Seconds of the clip: what start and end leave of the decoded stream, not what a header says."""
    source_fps: float
    """Frames a second of the file, on average."""
    decoder: str
    """"decord" or "pyav"."""

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.frames_FCHW, self.time_F, self.index_F))


def read_video(
    video: VideoFile,
    sampling: FrameSampling,
    *,
    decoder: Decoder = "auto",
    verify: bool = True,
    threads: int = 0,
) -> Frames:
    """The frames that `sampling` picks, decoded, turned upright and resized.

    Args:
        decoder: auto takes decord where it is installed and reads the file reliably, else PyAV.
        verify: decord counts frames wrongly in some files and conceals damage in others, so PyAV decodes the same frames
            strictly, and the two must agree; where they do not, auto takes PyAV's. Costs about as much again as decord
            alone. PyAV on its own needs no second look: `decoder="pyav"` is the cheapest that is safe.
        threads: of the decoder; 0 lets it choose.

    Raises:
        VideoError: missing, empty, damaged, cut off, without frames between start and end, or `decoder="decord"` and
            decord does not read it reliably.
        ConfigError: the pixel budget does not hold one frame, not even of a square video.
    """
    index = scan_video(video.path)
    first, last, start, duration = _clip(video, index)
    try:
        plan = plan_frames(
            sampling, duration=duration, available=last - first + 1, height=index.height, width=index.width
        )
    except ConfigError as error:
        if not sampling.holds_a_square():
            raise
        raise VideoError(video.path, f"has too long and narrow a shape: {error}") from error
    moment_F = start + torch.arange(plan.count, dtype=torch.float64) / plan.fps
    shown_F = torch.searchsorted(index.time_F, moment_F + SAME_MOMENT, right=True) - 1
    index_F = shown_F.clamp(first, last)
    wanted, place_F = torch.unique(index_F, return_inverse=True)
    pictures, used = _decode(index, wanted.tolist(), plan.height, plan.width, decoder, verify, threads)
    return Frames(
        frames_FCHW=torch.stack(pictures)[place_F],
        time_F=(index.time_F[index_F] - start).clamp_min(0.0),
        index_F=index_F,
        fps=plan.fps,
        duration=duration,
        source_fps=len(index) / index.end,
        decoder=used,
    )


def _clip(video: VideoFile, index: VideoIndex) -> tuple[int, int, float, float]:
    """First and last frame that appear within the crop, its start and its duration in seconds."""
    start = 0.0 if video.start is None else video.start
    end = index.end if video.end is None else min(video.end, index.end)
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        crop = f"start = {video.start}, end = {video.end}"
        raise VideoError(video.path, f"cannot be cropped to {crop}: it lasts {index.end:.2f} s")
    inside = (index.time_F >= start - SAME_MOMENT) & (index.time_F < end - SAME_MOMENT)
    numbers = inside.nonzero().flatten()
    if not len(numbers):
        raise VideoError(video.path, f"no frame appears between {start:g} s and {end:g} s")
    return int(numbers[0]), int(numbers[-1]), start, end - start


def _decode(
    index: VideoIndex, wanted: Sequence[int], height: int, width: int, decoder: Decoder, verify: bool, threads: int
) -> tuple[list[Tensor], str]:
    def shrink(picture_HWC: np.ndarray) -> Tensor:
        return resize(torch.from_numpy(np.ascontiguousarray(picture_HWC)).permute(2, 0, 1), height, width)

    pictures = None
    if decoder == "decord" or (decoder == "auto" and find_spec("decord") is not None):
        try:
            pictures = decode_with_decord(index, wanted, shrink, threads=threads)
        except VideoError as error:
            if decoder == "decord":
                raise
            log.debug("%s; PyAV reads it instead", error)
        if pictures is not None and not verify:
            return pictures, "decord"
    second = decode_with_pyav(index, wanted, shrink, threads=threads)
    if pictures is None:
        return second, "pyav"
    apart = max(float((one.float() - two.float()).abs().mean()) for one, two in zip(pictures, second, strict=True))
    if apart <= SAME_PICTURE:
        return pictures, "decord"
    if decoder == "decord":
        raise VideoError(index.path, f"decord shows other frames than PyAV (by {apart:.1f} of 255); use pyav or auto")
    log.debug("%s: decord shows other frames than PyAV (by %.1f of 255); PyAV's are taken", index.path, apart)
    return second, "pyav"


def resize(picture_CHW: Tensor, height: int, width: int) -> Tensor:
    """[3, height, width] uint8, bicubic with antialiasing; the same numbers on every machine and for every decoder."""
    if picture_CHW.shape[1:] == (height, width):
        return picture_CHW.contiguous()
    return functional.interpolate(picture_CHW[None], size=(height, width), mode="bicubic", antialias=True)[0]
