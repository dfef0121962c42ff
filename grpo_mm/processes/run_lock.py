"""The file that keeps two processes out of one run folder: where it lies, and who has it."""

from __future__ import annotations

import os
from pathlib import Path


def lock_of(folder: Path) -> Path:
    """Beside the run folder, which may be moved or cleared while it is held."""
    return folder.with_name(f".lock_{folder.name}")


def holder_of(folder: Path) -> str | None:
    """The number of the process of this system that trains there, "?" if it does not say; None: nobody does, or it cannot be known."""
    try:
        import fcntl

        file = os.fdopen(os.open(lock_of(folder), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK), "r+")
    except (ImportError, OSError):
        return None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the file
        except (BlockingIOError, PermissionError):
            return file.read(20).strip() or "?"
        except OSError:  # a file system without locks
            pass
    return None
