"""Folders for large files that a process keeps while it lives, on this machine's disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

LOCK = ".in_use"
"""A file in the folder that its process has locked: the system unlocks it however the process ends."""


class OwnFolder:
    """A new folder below the folder for temporary files; it goes with the object, and with the process.

    A process that is killed leaves it behind: the next one of the same user that makes a folder of this kind clears it away.
    """

    def __init__(self, kind: str) -> None:
        """kind: of letters, for the name: grpo_mm_KIND_…"""
        cleared(kind)
        being_made = Path(tempfile.mkdtemp(prefix="grpo_mm_new_"))
        self._lock = _locked(being_made / LOCK)
        self.path = being_made.with_name(being_made.name.replace("_new_", f"_{kind}_"))
        being_made.rename(self.path)  # under its name only when it is locked
        self._end = weakref.finalize(self, _removed, self.path, self._lock)

    def close(self) -> None:
        """Removes it; a second time does nothing."""
        self._end()

    def files(self) -> list[Path]:
        """What was put there, by name."""
        return sorted(path for path in self.path.iterdir() if path.name != LOCK)


def cleared(kind: str) -> list[Path]:
    """Folders of this kind that dead processes of this user have left, which are no more."""
    gone = []
    for path in Path(tempfile.gettempdir()).glob(f"grpo_mm_{kind}_*"):
        with suppress(OSError):  # another process clears it too, or it is another user's
            if path.is_symlink() or path.stat().st_uid != os.getuid() or not (path / LOCK).is_file():
                continue
            lock = _locked(path / LOCK)
            if lock is not None:
                _removed(path, lock)
                gone.append(path)
    return gone


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock; None: somebody has it, or this system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _removed(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)
