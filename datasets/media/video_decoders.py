"""Pixels of chosen frames, by decord or by PyAV. Both give the same pictures, or VideoError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_mm.datasets.media.video_index import VideoError, VideoIndex, has_alpha, open_container
from grpo_mm.errors import UserError
from grpo_mm.outside import reason

CHUNK = 16
"""Frames that decord holds at full size at a time."""
SEEK_FROM_SECONDS = 5.0
"""PyAV jumps to the first wanted frame if it lies later than this."""

Shrink = Callable[[np.ndarray], Tensor]
"""From a picture [H, W, 3] uint8 to what is kept of it; called at once, so that no full-size clip is held in memory."""


def decode_with_decord(index: VideoIndex, wanted: Sequence[int], shrink: Shrink, *, threads: int) -> list[Tensor]:
    """The frames `wanted` (rising, without repeats), each through `shrink`.

    decord 0.6 gives wrong pictures without an error for rotated files, MPEG transport streams and .avi files with
    B-frames, and repeats neighbours of frames it could not decode. So its own list of time stamps must be that of
    `index`, the pictures must have the right size, and a single repeated frame is an error. What these checks cannot
    see: it counts wrongly in MPEG-4 part 2 with B-frames (two late after the first key frames) and after jumps into open
    groups of H.264 and H.265 (one late), and it conceals damage inside a frame, as FFmpeg does. Only a comparison with
    another decoder finds that.

    Raises:
        VideoError: decord cannot read this file, or not reliably.
    """
    import decord

    if index.decord_refuses:
        raise VideoError(index.path, index.decord_refuses)
    try:
        reader = decord.VideoReader(index.path, num_threads=threads, fault_tol=1e-9)  # 0 would switch the check off
        if len(reader) != len(index):
            raise VideoError(index.path, f"decord finds {len(reader)} frames, the file has {len(index)}")
        theirs = torch.from_numpy(reader.get_frame_timestamp(list(range(len(reader))))[:, 0]).double()
        if not torch.allclose(theirs, index.time_F, rtol=1e-6, atol=1e-3):  # decord keeps float32
            raise VideoError(index.path, "decord's time stamps differ from those of the file")
        kept: list[Tensor] = []
        for start in range(0, len(wanted), CHUNK):
            pictures = _as_numpy(reader.get_batch(list(wanted[start : start + CHUNK])))
            if pictures.shape[1:] != (size := (*index.stored, 3)):
                raise VideoError(index.path, f"decord gives pictures of {pictures.shape[1:]}, wanted {size}")
            kept += [shrink(picture) for picture in pictures]
        return kept
    except (VideoError, UserError):
        raise
    except Exception as error:  # its classes of exceptions have no common root
        raise VideoError(index.path, f"decord cannot decode it ({reason(error, 200)})") from error


def decode_with_pyav(index: VideoIndex, wanted: Sequence[int], shrink: Shrink, *, threads: int) -> list[Tensor]:
    """The frames `wanted` (rising, without repeats), each through `shrink`; stops at the first damage it meets.

    Raises:
        VideoError: something from the nearest key frame before the first wanted frame up to the last is damaged.
    """
    kept: list[Tensor] = []

    def take(frame: Any) -> None:
        kept.append(shrink(_upright(frame, index)))

    if index.pts_F is not None and float(index.time_F[wanted[0]]) > SEEK_FROM_SECONDS:
        # A jump may land behind the wanted frame, or on a group that leans on the one before: then from the start.
        with contextlib.suppress(VideoError):
            _walk(index, wanted, take, index.pts_F[wanted[0]], threads)
            return kept
        kept.clear()
    _walk(index, wanted, take, None, threads)
    return kept


def _walk(
    index: VideoIndex, wanted: Sequence[int], take: Callable[[Any], None], seek_pts: int | None, threads: int
) -> None:
    """Calls `take` with each wanted frame in order."""
    import av

    number_of = None if index.pts_F is None else {pts: n for n, pts in enumerate(index.pts_F)}
    left = list(reversed(wanted))
    try:
        with open_container(index.path) as container:
            stream = container.streams[index.stream]
            stream.thread_type, stream.thread_count = "AUTO", threads
            if seek_pts is not None:
                container.seek(seek_pts, stream=stream)
            for order, frame in enumerate(container.decode(stream)):
                number = order if number_of is None else number_of.get(frame.pts)
                if frame.is_corrupt:
                    raise VideoError(index.path, f"is damaged at {frame.time or 0:.2f} s")
                if left and number == left[-1]:
                    left.pop()
                    take(frame)
                if not left:
                    return
    except av.FFmpegError as error:
        near = float(index.time_F[left[-1]])
        raise VideoError(index.path, f"is damaged before or at {near:.2f} s ({error.strerror})") from error
    except (VideoError, UserError):
        raise
    except Exception as error:
        raise VideoError(index.path, f"cannot be decoded ({reason(error)})") from error
    raise VideoError(index.path, f"its frame {left[-1]} at {float(index.time_F[left[-1]]):.2f} s cannot be decoded")


def _upright(frame: Any, index: VideoIndex) -> np.ndarray:
    stored = _on_white(frame.to_ndarray(format="rgba")) if has_alpha(frame) else frame.to_ndarray(format="rgb24")
    return np.rot90(stored[:, ::-1] if index.mirrored else stored, k=-index.rotation // 90)


def _on_white(picture_HW4: np.ndarray) -> np.ndarray:
    alpha = picture_HW4[..., 3:].astype(np.uint32)
    return ((picture_HW4[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _as_numpy(batch: Any) -> np.ndarray:
    """Whatever `decord.bridge` is set to elsewhere in the program."""
    return batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
