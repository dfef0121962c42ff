"""What a video file holds, found without decoding it: which stream, which frames, and when each of them is shown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STRICT = {"err_detect": "explode"}
"""FFmpeg conceals damage by default: it paints what is missing from neighbouring frames and says nothing."""
SLACK_SECONDS = 0.5
"""How far a header may promise more than the file holds before the file counts as cut off."""


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """The frames of one stream in the order in which they are shown.

    Example: 50 frames at 25 per second: time_F = [0, 0.04, …, 1.96], end = 2.0.
    """

    path: str
    stream: int
    time_F: Tensor
    """[F] float64 seconds from the first frame of the stream, from the file's own time stamps; they never fall."""
    end: float
    """Seconds at which the last frame ends."""
    pts_F: tuple[int, ...] | None
    """Time stamps in the unit of the stream; None: they cannot be trusted, frames are known by their order only."""
    height: int
    """In pixels, as shown: after rotation."""
    width: int
    rotation: int
    """Degrees clockwise from the stored picture to the shown one: 0, 90, 180 or 270."""
    decord_refuses: str
    """Why decord must not read this file; empty if it may."""

    def __len__(self) -> int:
        return self.time_F.shape[0]


def scan_video(path: str) -> VideoIndex:
    """Demuxes the file once and decodes its first frame.

    Where a hole in a .mkv has swallowed whole frames up to a key frame, the file looks like one that pauses: times stay
    right, and the pause shows the frame before it. Nothing in the file tells the two apart.

    Of several video streams the one with the most pixels is taken; among equals the one flagged as default, then the
    first. Cover pictures do not count.

    Raises:
        VideoError: missing, empty, no video, no video stream, nothing to show, cut off, or a first frame that is broken.
    """
    import av

    if not Path(path).is_file():
        raise VideoError(path, "no such file")
    if not (num_bytes := os.path.getsize(path)):
        raise VideoError(path, "the file is empty (0 bytes)")
    try:
        with open_container(path) as container:
            number, height, width, rotation = _first_frame(path, container, _choose_stream(path, container))
        with open_container(path) as container:  # again, since decoding has moved on in it
            found = _read_packets(path, container, container.streams[number], num_bytes)
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be read as a video ({error.strerror})") from error
    except OSError as error:
        raise VideoError(path, f"cannot be opened ({error.strerror})") from error
    time_F, end, pts_F, refusal = found
    if rotation:
        refusal = (
            refusal or f"decord does not turn pictures reliably, and this one is to be turned by {rotation} degrees"
        )
    return VideoIndex(path, number, time_F, end, pts_F, height, width, rotation, refusal)


def open_container(path: str) -> Any:
    """An open PyAV container whose video decoders stop at damage."""
    import av

    # An absolute path: "clip:01.mp4" would be taken for a protocol. Tags in odd encodings are no reason to fail.
    container = av.open(os.path.abspath(path), metadata_errors="ignore")
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = STRICT
    return container


def _choose_stream(path: str, container: Any) -> Any:
    import av

    flags = av.stream.Disposition
    streams = [s for s in container.streams.video if not s.disposition & flags.attached_pic]
    if not streams:
        others = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise VideoError(path, f"has no video stream; found {others}")
    best = max(streams, key=lambda s: (s.width * s.height, bool(s.disposition & flags.default), -s.index))
    if best.codec_context is None:
        raise VideoError(path, "there is no decoder for its video stream")
    return best


def _first_frame(path: str, container: Any, stream: Any) -> tuple[int, int, int, int]:
    """The stream's number, and height, width and rotation of its pictures as shown."""
    frame = next(container.decode(stream), None)
    if frame is None:
        raise VideoError(path, "its video stream has no frames")
    rotation = -frame.rotation % 360
    if rotation % 90:
        raise VideoError(path, f"is to be shown rotated by {rotation} degrees; only quarter turns are supported")
    height, width = (frame.width, frame.height) if rotation % 180 else (frame.height, frame.width)
    return stream.index, height, width, rotation


def _read_packets(path: str, container: Any, stream: Any, num_bytes: int) -> tuple[Tensor, float, Any, str]:
    packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    broken = sum(p.is_corrupt for p in packets)
    if broken or _points_past_the_end(container, stream, num_bytes):
        raise VideoError(path, f"is cut off or damaged: {broken or 'some'} of its packets are incomplete")
    if not packets:
        raise VideoError(path, "its video stream has no frames")
    pts = sorted(p.pts for p in packets if p.pts is not None)
    # .avi stores the order of decoding only; FFmpeg makes time stamps up, and with B-frames they are wrong.
    trusted = len(set(pts)) == len(packets) and container.format.name != "avi"
    stamps = pts if trusted else sorted(p.dts for p in packets if p.dts is not None)
    if len(stamps) == len(packets):
        unit = float(stream.time_base)
        seconds = [(stamp - stamps[0]) * unit for stamp in stamps]
        last = float(max(packets, key=lambda p: p.pts or 0).duration or 0) * unit
    elif stream.average_rate:
        seconds, last = [n / float(stream.average_rate) for n in range(len(packets))], 0.0
    else:
        raise VideoError(path, "its frames have no time stamps")
    if not last:
        last = seconds[-1] / (len(seconds) - 1) if len(seconds) > 1 else 1 / float(stream.average_rate or "inf")
    end = seconds[-1] + last
    if end <= 0:
        raise VideoError(path, "lasts 0 seconds")
    promised = _promised_seconds(container, stream)
    latest = max(end, stamps[-1] * unit + last if len(stamps) == len(packets) else 0.0)
    if promised - latest > max(SLACK_SECONDS, 0.02 * promised):
        raise VideoError(path, f"is cut off: its header promises {promised:.2f} s, the frames end at {latest:.2f} s")
    return torch.tensor(seconds, dtype=torch.float64), end, tuple(pts) if trusted else None, _refusal(container, stream)


def _points_past_the_end(container: Any, stream: Any, num_bytes: int) -> bool:
    """An .mp4 knows the place of every frame; in other files this index is partial or absent."""
    if "mp4" not in container.format.name:
        return False
    return any(entry.pos + entry.size > num_bytes for entry in stream.index_entries)


def _promised_seconds(container: Any, stream: Any) -> float:
    """The duration in the header of .mkv, .webm and .avi; 0 where there is none, or where it may be that of the sound."""
    name = container.format.name
    if name == "avi":
        return float(stream.frames * stream.time_base)  # FFmpeg's own duration is that of what is left
    if "matroska" not in name:
        return 0.0
    clock = next((value for key, value in stream.metadata.items() if key.upper().startswith("DURATION")), "")
    try:
        hours, minutes, seconds = (float(part) for part in clock.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    except ValueError:
        return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _refusal(container: Any, stream: Any) -> str:
    if not any(known in container.format.name for known in ("mp4", "matroska", "avi")):
        return f"decord does not seek reliably in files of the format {container.format.name}"
    size = (stream.width, stream.height)
    if any((s.width, s.height) == size for s in container.streams.video if s.index != stream.index):
        return "decord cannot be told which of several video streams of the same size to read"
    return ""
