"""What may be opened at all: regular files that hold something."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

LONGEST_PATH = 400
"""Characters of a path in a message."""
SCHEMES = ("http", "https", "ftp", "s3", "gs", "hf")


def check_regular(path: str, error: Callable[[str, str], Exception]) -> None:
    """Raises `error(path, reason)` for what is no regular file, or is empty.

    A pipe would be waited for, and a device read for ever.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        scheme, colon, _ = path.partition(":/")  # a path joins the two strokes of an address
        is_address = colon and scheme.rpartition("/")[2].lower() in SCHEMES
        raise error(path, "is an address; download it first" if is_address else "no such file") from None
    except (OSError, ValueError) as problem:
        raise error(path, f"cannot be opened ({getattr(problem, 'strerror', None) or problem})") from None
    if stat.S_ISDIR(status.st_mode):
        raise error(path, "no such file, but a folder of that name")
    if not stat.S_ISREG(status.st_mode):
        raise error(path, "is a pipe, a socket or a device, no file")
    if not status.st_size:
        raise error(path, "the file is empty (0 bytes)")
