"""Runs a command as long as the process that started it is there: `python keeper.py PROGRAM …`, its standard input a pipe of that process.

When the pipe ends or the parent is another, however the parent went, the command and all that it started are ended. It imports
nothing of this package, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

GRACE_SECONDS = 10.0
"""For the command to end by itself, before it is killed."""
LOOK_SECONDS = 0.5
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""


def main(command: Sequence[str]) -> int:
    """The command's exit status; when this returns, nothing of the command's process group is left."""
    parent, asked = os.getppid(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_dies_with_us, process_group=0)
    threading.Thread(target=_until_the_pipe_ends, args=(asked,), daemon=True).start()
    while child.poll() is None and not asked.is_set():
        if os.getppid() != parent:  # a forked worker of the parent may hold the pipe open
            asked.set()
        asked.wait(LOOK_SECONDS)
    if child.poll() is None:
        child.terminate()
        until = time.monotonic() + GRACE_SECONDS
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
    status = child.poll()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # what it has started and left behind, itself if it is still there
    return 1 if status is None else status if status >= 0 else 128 - status


def _until_the_pipe_ends(asked: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    asked.set()


def _dies_with_us() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
