"""What a video file holds, found without decoding it: which stream, which frames, and when each of them is shown."""

from __future__ import annotations

import functools
import logging
import math
import os
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.datasets.media.pictures import MAX_PIXELS
from grpo_mm.datasets.media.regular_files import LONGEST_PATH, check_regular
from grpo_mm.errors import UserError
from grpo_mm.outside import plain, reason

FORMATS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "ogg", "asf", "gif",
    "apng", "h264", "hevc", "ivf", "obu", "m4v", "mxf", "nut", "dv", "rm", "mjpeg",
)  # fmt: skip
"""FFmpeg's names of what may be opened. Its other formats include lists that name further files (concat, hls, dash, image2)."""
STRICT = {"err_detect": "explode"}
"""FFmpeg conceals damage by default: it paints what is missing from neighbouring frames and says nothing."""
SLACK_SECONDS = 0.5
"""How far a header may promise more than the file holds before the file counts as cut off."""
STILL_BRANDS = ("heic", "heix", "mif1", "avif")
"""What files of pictures in the format of videos call themselves."""
LONGEST_PIXEL = 16.0
"""Times that a pixel may be as wide as high, or as high as wide."""
log = logging.getLogger(__name__)


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{plain(path, LONGEST_PATH)}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """The frames of one stream in the order in which they are shown.

    Example: 50 frames at 25 per second: time_F = [0, 0.04, …, 1.96], end = 2.0.
    """

    path: str
    stream: int
    time_F: Tensor
    """[F] float64 seconds from the first frame of the stream, from the file's own time stamps; they never fall. The first may be
    above 0: frames before the first key frame cannot be shown."""
    end: float
    """Seconds at which the last frame ends."""
    pts_F: tuple[int, ...] | None
    """Time stamps in the unit of the stream; None: they cannot be trusted, frames are known by their order only."""
    height: int
    """In square pixels, as shown: after mirroring and rotation. Of pixels that are not square the longer side is kept whole
    and the shorter one is stretched, as browsers do."""
    width: int
    stored: tuple[int, int]
    """Height and width of the pictures as they are decoded."""
    mirrored: bool
    """Left and right change places, before the rotation."""
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

    check_regular(path, VideoError)
    try:
        with open_container(path) as container:
            number, look, first_pts = _first_frame(path, container, _choose_stream(path, container))
        with open_container(path) as container:  # again, since decoding has moved on in it
            found = _read_packets(path, container, container.streams[number], os.path.getsize(path))
    except (VideoError, UserError):
        raise
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be read as a video ({error.strerror})") from error
    except OSError as error:
        raise VideoError(path, f"cannot be opened ({error.strerror})") from error
    except Exception as error:
        raise VideoError(path, f"cannot be read as a video ({reason(error)})") from error
    time_F, end, pts_F, refusal = found
    if pts_F is not None and first_pts in pts_F and (missing := pts_F.index(first_pts)):
        # What leans on a key frame before the file began is never shown; players wait, on the same clock.
        log.warning("%s does not begin with a key frame: its first %d frames cannot be shown", plain(path), missing)
        time_F, pts_F = time_F[missing:], pts_F[missing:]
    height, width = look.shown
    return VideoIndex(
        path,
        number,
        time_F,
        end,
        pts_F,
        height,
        width,
        look.stored,
        look.mirrored,
        look.rotation,
        refusal or look.refusal,
    )


def open_container(path: str) -> Any:
    """An open PyAV container, of a format in `FORMATS`, whose video decoders stop at damage.

    Raises:
        VideoError: another format, or nothing that FFmpeg knows.
    """
    import av

    # An absolute path: "clip:01.mp4" would be taken for a protocol. Tags in odd encodings are no reason to fail.
    allowed = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    try:
        container = av.open(os.path.abspath(path), metadata_errors="ignore", container_options=allowed)
    except av.error.ArgumentError as error:  # how FFmpeg says that a format is not in the list
        raise VideoError(
            path,
            "is no video of a known format (a still picture is none), or a list of other files, which is not followed",
        ) from error
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
    readable = [s for s in streams if s.codec_context is not None]  # of the others not even the size is known
    if not readable:
        raise VideoError(path, "there is no decoder for its video stream")
    # One frame beside others that move is a cover, or the still picture of a moving AVIF.
    best = max(
        readable, key=lambda s: (s.frames != 1, s.width * s.height, bool(s.disposition & flags.default), -s.index)
    )
    if best.frames <= 1 and (brand := container.metadata.get("major_brand", "").strip()) in STILL_BRANDS:
        raise VideoError(path, f"is a still picture ({brand}), no video")
    if best.width * best.height > MAX_PIXELS:
        raise VideoError(path, f"has frames of {best.width} × {best.height} pixels; one may have {MAX_PIXELS:,}")
    _warn_of(best.codec_context.name, path)
    return best


@functools.cache
def _warn_of_vp8(path: str) -> None:
    log.warning(
        "%s is VP8, which has no check sums: frames with damage inside cannot be told from sound ones", plain(path)
    )


def _warn_of(codec: str, path: str) -> None:
    """Says once, at the first such file."""
    if codec == "vp8" and not _warn_of_vp8.cache_info().currsize:
        _warn_of_vp8(path)


@dataclass(frozen=True)
class _Look:
    """How the stored pictures of a stream become the shown ones."""

    stored: tuple[int, int]
    shown: tuple[int, int]
    mirrored: bool
    rotation: int
    refusal: str


def _first_frame(path: str, container: Any, stream: Any) -> tuple[int, _Look, int | None]:
    """The stream's number, how its pictures are shown, and the time stamp of the first that can be."""
    frame = next(container.decode(stream), None)
    if frame is None:
        raise VideoError(path, "its video stream has no frames")
    if frame.width * frame.height > MAX_PIXELS:
        raise VideoError(path, f"has frames of {frame.width} × {frame.height} pixels; one may have {MAX_PIXELS:,}")
    mirrored, rotation = _turn(path, frame)
    pixel = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    if not 1 / LONGEST_PIXEL <= pixel <= LONGEST_PIXEL:
        raise VideoError(
            path, f"says that its pixels are {pixel:.3g} times as wide as high; at most {LONGEST_PIXEL:g} is believed"
        )
    height, width = round(frame.height * max(1.0, 1 / pixel)), round(frame.width * max(1.0, pixel))
    shown = (width, height) if rotation % 180 else (height, width)
    refusal = ""
    if mirrored or rotation:
        how = "mirrored and turned" if mirrored else "turned"
        refusal = f"decord does not turn pictures reliably, and this one is to be {how} by {rotation} degrees"
    elif has_alpha(frame):
        refusal = "decord knows no transparency, and this one has some"
    return stream.index, _Look((frame.height, frame.width), shown, mirrored, rotation, refusal), frame.pts


def has_alpha(frame: Any) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _turn(path: str, frame: Any) -> tuple[bool, int]:
    """Whether a frame is to be mirrored, and by how many degrees it is then to be turned clockwise.

    By the display matrix: a point (x, y) of the stored picture is shown at (a x + c y, b x + d y), y downwards.
    """
    found = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), b"")
    if len(found) < 36:
        return False, 0
    a, b, _, c, d, *_ = struct.unpack("=9i", found[:36])
    across, down = math.hypot(a, b), math.hypot(c, d)
    if not across or not down:  # a matrix of zeros, which players pass over
        return False, 0
    corner = [a / across, b / across, c / down, d / down]
    if any(min(abs(value), abs(abs(value) - 1)) > 1e-3 for value in corner) or abs(corner[0]) + abs(corner[2]) < 0.5:
        degrees = math.degrees(math.atan2(b, a)) % 360
        raise VideoError(
            path, f"is to be shown turned by {degrees:.0f} degrees; only quarter turns and mirrors are supported"
        )
    mirrored = a * d - b * c < 0
    sign = -1 if mirrored else 1
    return mirrored, round(math.degrees(math.atan2(sign * b, sign * a))) % 360


def _read_packets(path: str, container: Any, stream: Any, num_bytes: int) -> tuple[Tensor, float, Any, str]:
    pts_D: list[int | None] = []  # in the order of decoding; packets themselves are the size of the file
    dts_D: list[int | None] = []
    broken, latest_pts, last_duration = 0, -math.inf, 0
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        broken += packet.is_corrupt
        pts_D.append(packet.pts)
        dts_D.append(packet.dts)
        if (packet.pts or 0) > latest_pts:
            latest_pts, last_duration = packet.pts or 0, packet.duration or 0
    if broken or _points_past_the_end(container, stream, num_bytes):
        raise VideoError(path, f"is cut off or damaged: {broken or 'some'} of its packets are incomplete")
    if not pts_D:
        raise VideoError(path, "its video stream has no frames")
    count = len(pts_D)
    pts = sorted(stamp for stamp in pts_D if stamp is not None)
    # .avi stores the order of decoding only; FFmpeg makes time stamps up, and with B-frames they are wrong.
    trusted = len(set(pts)) == count and container.format.name != "avi"
    stamps = pts if trusted else sorted(stamp for stamp in dts_D if stamp is not None)
    if len(stamps) == count:
        unit = float(stream.time_base)
        seconds = [(stamp - stamps[0]) * unit for stamp in stamps]
        last = float(last_duration) * unit
    elif stream.average_rate:
        seconds, last = [n / float(stream.average_rate) for n in range(count)], 0.0
    else:
        raise VideoError(path, "its frames have no time stamps")
    if not last:
        last = seconds[-1] / (len(seconds) - 1) if len(seconds) > 1 else 1 / float(stream.average_rate or "inf")
    end = seconds[-1] + last
    if end <= 0:
        raise VideoError(path, "lasts 0 seconds")
    promised = _promised_seconds(container, stream)
    latest = max(end, stamps[-1] * unit + last if len(stamps) == count else 0.0)
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
