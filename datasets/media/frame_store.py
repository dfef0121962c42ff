"""Decoded frames, made once and shared by sampling, training and evaluation."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grpo_mm.datasets.media.encoded_picture import EncodedPicture
from grpo_mm.datasets.media.frame_folder import FrameFolder
from grpo_mm.datasets.media.frame_sampling import FrameGrid, plan_frames
from grpo_mm.datasets.media.media_files import (
    Decoder,
    Frames,
    FrameSampling,
    ImageFile,
    VideoError,
    VideoFile,
    read_video,
)
from grpo_mm.datasets.media.picture_arrays import array_as_shown, is_feature, open_feature
from grpo_mm.datasets.media.picture_sequence import PictureSequence, chosen_pictures, read_pictures
from grpo_mm.datasets.media.pictures import as_shown, open_picture, picture_size
from grpo_mm.datasets.media.regular_files import check_regular
from grpo_mm.datasets.media.video_index import scan_video
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.identity import FREE
from grpo_mm.outside import reason

FORMAT = 2
"""Part of every key: raise it when the same settings give other frames."""
MIB = 1 << 20
log = logging.getLogger(__name__)


@dataclass
class StoreCounts:
    """What a store has done. `failures` counts videos, `refusals` the requests that met a remembered failure."""

    hits: int = 0
    """From memory, or from another thread that was decoding the same."""
    folder_hits: int = 0
    misses: int = 0
    """Decoded, or tried to."""
    failures: int = 0
    refusals: int = 0


@dataclass(eq=False)
class FrameStore:
    """Frames by what is in the file, the crop, the sampling, and the decoder with its version.

    A file that is replaced is another file; one that is moved or copied is the same. The least recently used frames
    leave first, from memory and from the folder. Safe for threads; several processes may share the folder.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    """For requests that bring none."""
    decoder: Decoder = "auto"
    """auto: decord where it is installed and reads the file rightly, else PyAV."""
    verify: bool = field(default=True, metadata=FREE)
    """See `read_video`."""
    memory_mib: int = field(default=4096, metadata=FREE)
    """What is kept in memory; a clip larger than this is not kept."""
    folder: str | None = field(default=None, metadata=FREE)
    """Keeps frames over runs as safetensors files; None: memory only."""
    folder_mib: int = field(default=32768, metadata=FREE)
    """Size of `folder`, in MiB, from which on the least recently used frames leave it."""

    def __post_init__(self) -> None:
        if self.memory_mib < 0 or self.folder_mib < 1:
            raise ConfigError(f"memory_mib = {self.memory_mib}, folder_mib = {self.folder_mib}: at least 0 and 1.")
        self.counts = StoreCounts()
        self._folder = None if self.folder is None else FrameFolder(self.folder, self.folder_mib * MIB)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Frames] = OrderedDict()
        self._bytes = 0
        self._underway: dict[str, Future[Frames]] = {}
        self._failed: dict[str, VideoError] = {}
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._grid: FrameGrid | None = None
        self._made_by = "+".join(f"{name} {_version(name)}" for name in ("decord", "av", "torch"))

    @property
    def failures(self) -> dict[str, str]:
        """Path → reason, of every video that could not be read."""
        with self._lock:
            return {error.path: error.reason for error in self._failed.values()}

    def load(self, item: Any) -> Any:
        """Opens what stands in `Prompt.media`: `VideoFile`, `PictureSequence` → Frames; `ImageFile`, `EncodedPicture`, the bytes
        of a picture file, {"bytes": …, "path": …}, a PIL picture of any mode, uint8 [H, W, 3] → a PIL picture in RGB, see
        `open_picture` and `array_as_shown`; others as is.

        Raises:
            VideoError: a video that cannot be read.
            PictureError: a picture that cannot be read.
        """
        if isinstance(item, VideoFile | PictureSequence):
            return self.get(item)
        if isinstance(item, ImageFile):
            return open_picture(item.path)
        if isinstance(item, EncodedPicture):
            return item.open()
        if isinstance(item, bytes | bytearray | memoryview):
            return open_picture(bytes(item))
        if is_feature(item):
            return open_feature(item)
        return as_shown(item) if hasattr(item, "getexif") else array_as_shown(item)

    def probe(self, item: Any) -> None:
        """Opens a picture, or reads the index of a video, and keeps no frames; raises as `load`."""
        if isinstance(item, VideoFile):
            scan_video(item.path)
        else:
            self.load(item)

    def fit(
        self,
        multiple_of: int,
        *,
        frame_pixels: tuple[int, int] | None = None,
        clip_pixels: tuple[int, int] | None = None,
    ) -> None:
        """From now on frames are made as a model takes them, see `FrameGrid`: what the store makes is what it is shown.

        Raises:
            ConfigError: the sampling asks for another multiple, or the store makes frames for another model already.
        """
        grid = FrameGrid(multiple_of, frame_pixels, clip_pixels)
        self.sampling.fitted(grid)
        if self._grid not in (None, grid):
            raise ConfigError(
                f"a frame store makes frames for one model: found {grid}, and {self._grid} before. Give each model a store."
            )
        self._grid = grid

    def planned(self, *, seconds: float, height: int, width: int, multiple_of: int) -> tuple[int, int, int]:
        """(frames, height, width) that a clip of this length and size would be shown as to a model with such patches."""
        sampling = self.sampling.fitted(FrameGrid(multiple_of))
        plan = plan_frames(sampling, duration=seconds, available=max(1, int(30 * seconds)), height=height, width=width)
        return plan.count, plan.height, plan.width

    def picture_size(self, item: Any) -> tuple[int, int] | None:
        """(width, height) of an `ImageFile` or `EncodedPicture` as it is shown, from the head of the file; else None.

        Raises:
            PictureError: a picture that cannot be read.
        """
        if isinstance(item, EncodedPicture):
            return item.size()
        return picture_size(item.path) if isinstance(item, ImageFile) else None

    def get(self, video: VideoFile | PictureSequence, sampling: FrameSampling | None = None) -> Frames:
        """The frames of `video`; decodes only what was never decoded.

        Raises:
            VideoError: this file cannot be read. It is remembered and not tried again until the file changes.
            ConfigError: the sampling's budget does not hold one frame.
        """
        sampling = sampling or self.sampling
        sampling = sampling if self._grid is None else sampling.fitted(self._grid)
        key = self._key(video, sampling)
        with self._lock:
            if key in self._failed:
                self.counts.refusals += 1
                raise VideoError(video.path, self._failed[key].reason)
            if key in self._kept:
                self.counts.hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            others = self._underway.get(key)
            if others is None:
                mine = self._underway[key] = Future()
            else:
                self.counts.hits += 1
        if others is not None:
            return others.result()
        try:
            frames = self._from_folder(key) or self._decode(key, video, sampling)
        except BaseException as error:
            self._finish(key)
            mine.set_exception(error)
            raise
        self._keep(key, frames)
        self._finish(key)
        mine.set_result(frames)
        return frames

    def _decode(self, key: str, video: VideoFile | PictureSequence, sampling: FrameSampling) -> Frames:
        with self._lock:
            self.counts.misses += 1
        try:
            if isinstance(video, PictureSequence):
                frames = read_pictures(video, sampling)
            else:
                frames = read_video(video, sampling, decoder=self.decoder, verify=self.verify)
        except UserError:
            raise
        except Exception as error:
            known = error if isinstance(error, VideoError) else VideoError(video.path, reason(error))
            self._remember(key, known)
            raise known from error.__cause__
        if self._folder is not None:
            self._folder.put(key, frames)
        return frames

    def _from_folder(self, key: str) -> Frames | None:
        frames = None if self._folder is None else self._folder.get(key)
        if frames is not None:
            with self._lock:
                self.counts.folder_hits += 1
        return frames

    def _remember(self, key: str, error: VideoError) -> None:
        with self._lock:
            new = key not in self._failed
            self._failed[key] = error
            self.counts.failures += new
            self.counts.refusals += not new
        if new:
            log.warning("cannot read a video: %s", error)

    def _finish(self, key: str) -> None:
        with self._lock:
            del self._underway[key]

    def _keep(self, key: str, frames: Frames) -> None:
        limit = self.memory_mib * MIB
        if frames.num_bytes > limit:
            return
        with self._lock:
            self._kept[key] = frames
            self._bytes += frames.num_bytes
            while self._bytes > limit:
                self._bytes -= self._kept.popitem(last=False)[1].num_bytes

    def _key(self, video: VideoFile | PictureSequence, sampling: FrameSampling) -> str:
        try:
            if isinstance(video, PictureSequence):
                content = "+".join(self._picture_content(video, file) for _, file in chosen_pictures(video))
                part: list[Any] = [video.fps]
            else:
                content, part = self._content(video.path), [video.start, video.end]
        except UserError:
            raise
        except Exception as error:
            # Not remembered by key: a file that appears later is read. The failure is counted once and named.
            failure = VideoError(video.path, getattr(error, "reason", None) or reason(error))
            self._remember(f"missing {video.path}", failure)
            raise failure from error
        with self._lock:
            self._failed.pop(f"missing {video.path}", None)
        asked = [FORMAT, content, *part, asdict(sampling), self.decoder, self.verify, self._made_by]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _picture_content(self, video: PictureSequence, file: Path) -> str:
        try:
            return self._content(str(file))
        except VideoError as error:
            raise VideoError(video.path, f"{file.name}: {error.reason}") from error

    def _content(self, path: str) -> str:
        """The hash of a file, computed once as long as it does not change."""
        check_regular(path, VideoError)
        status = os.stat(path)
        where = (os.path.abspath(path), status.st_mtime_ns, status.st_size)
        content = self._hashes.get(where) or content_hash(path)
        with self._lock:
            self._hashes[where] = content
        return content


def content_hash(path: str) -> str:
    """Size and SHA-256 of the whole file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{file.tell()}-{digest}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
