"""Decoded frames as files, the least recently used of which make room for new ones."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from grpo_mm.datasets.media.media_files import Frames

STALE_SECONDS = 3600.0
"""A half-written file older than this was left by a process that died."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameFolder:
    """A folder of safetensors files named by key. Several processes may share it: files appear whole or not at all."""

    path: str
    limit_bytes: int

    def get(self, key: str) -> Frames | None:
        """None if there are no such frames, or no longer. A broken file is removed."""
        file = Path(self.path) / f"{key}.safetensors"
        try:
            frames = read_frames(file) if file.is_file() else None
        except FileNotFoundError:  # another process made room
            return None
        except OSError as error:
            log.warning("%s cannot be read (%s); the video is decoded again", file, error)
            return None
        except Exception as error:  # safetensors has an error of its own for broken files
            log.warning("%s is broken (%s); the video is decoded again", file, error)
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        with contextlib.suppress(OSError):  # the time of last use; a folder of others may be read only
            os.utime(file)
        return frames

    def put(self, key: str, frames: Frames) -> None:
        """Without space or rights the frames are not kept, which is logged: the run can go on without."""
        folder = Path(self.path)
        # By chance, since containers that share the folder have the same process numbers.
        part = folder / f"{key}.{os.getpid()}.{secrets.randbits(62)}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_frames(part, frames)
            os.replace(part, folder / f"{key}.safetensors")
            make_room(folder, self.limit_bytes)
        except Exception as error:  # safetensors reports a full disk by an error of its own
            log.warning("frames are not kept in %s: %s", folder, error)
            with contextlib.suppress(OSError):
                part.unlink()


def write_frames(file: Path, frames: Frames) -> None:
    from safetensors.torch import save_file

    tensors = {"frames": frames.frames_FCHW, "time": frames.time_F, "index": frames.index_F}
    numbers = {name: repr(getattr(frames, name)) for name in ("fps", "duration", "source_fps")}
    save_file(tensors, file, metadata=numbers | {"decoder": frames.decoder})


def read_frames(file: Path) -> Frames:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        about = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in ("frames", "time", "index")}
    numbers = {name: float(about[name]) for name in ("fps", "duration", "source_fps")}
    return Frames(tensors["frames"], tensors["time"], tensors["index"], **numbers, decoder=about["decoder"])


def make_room(folder: Path, limit_bytes: int) -> None:
    """Removes the least recently used frames until the rest fits, and what dead processes left half-written.

    Only what `put` has written: of other files in the folder nothing is removed, and they do not count.
    """
    files = []
    for entry in os.scandir(folder):
        if entry.name.endswith((".safetensors", ".part")) and entry.is_file(follow_symlinks=False):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if entry.name.endswith(".safetensors"):
                files.append((status.st_mtime_ns, status.st_size, entry.path))
            elif PART.fullmatch(entry.name) and status.st_mtime < time.time() - STALE_SECONDS:
                Path(entry.path).unlink(missing_ok=True)
    if sum(size for _, size, _ in files) <= limit_bytes:
        return
    files = [(time_ns, size, path) for time_ns, size, path in files if _holds_frames(path)]
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit_bytes:
            break
        Path(path).unlink(missing_ok=True)
        total -= size


PART = re.compile(r".+\.[0-9]+\.[0-9]+\.part")


def _holds_frames(path: str) -> bool:
    """By the head of the file, which `write_frames` has written."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(size)) if size < 10_000 else {}
        return {"frames", "time", "index"} <= set(head) and "decoder" in head["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
