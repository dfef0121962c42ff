"""A command that a worker runs, with what it last said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from grpo_mm.outside import plain

KEPT = Path(__file__).with_name("kept.py")
LINES = 500
"""Of its output that are kept until somebody reads them."""
LONGEST_LINE = 4000
END_SECONDS = 10.0


class Child:
    """A running command. It ends when this process does, also when that is killed; so does what it started itself."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], folder: str | None = None) -> None:
        ours, its = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(KEPT), str(its), *command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
                env=dict(environment), pass_fds=(its,), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(its)
        self._told = os.fdopen(ours, "rb")
        self.pid = int(self._told.readline() or 0)
        """Of the command itself."""
        self._lines: deque[str] = deque(maxlen=LINES)
        self._count, self._lock = 0, threading.Lock()
        self._code: int | None = None
        self._over = threading.Event()
        self._read = threading.Thread(target=self._listen, name="grpo_mm-said", daemon=True)
        self._read.start()
        threading.Thread(target=self._wait, name="grpo_mm-child", daemon=True).start()

    @property
    def code(self) -> int | None:
        """Exit code, or minus the signal that ended it; None while it runs."""
        return self._code if self._over.is_set() else None

    def wait(self, seconds: float | None = None) -> int | None:
        """As `code`, when it has ended or `seconds` have passed."""
        self._over.wait(seconds)
        return self.code

    def said(self, after: int = 0) -> tuple[int, list[str]]:
        """(how many lines it has said, those after line `after` that are still kept)."""
        with self._lock:
            lines, count = list(self._lines), self._count
        fresh = min(max(0, count - after), len(lines))
        return count, lines[len(lines) - fresh :]

    def send(self, number: int) -> None:
        """A signal for the command, unless it has ended."""
        with suppress(OSError, ValueError):
            self._process.stdin.write(f"{int(number)}\n".encode())
            self._process.stdin.flush()

    def end(self, *, seconds: float = 0.0) -> int | None:
        """Asks it to end and kills it after so many seconds; at once for 0."""
        if seconds and self.code is None:
            self.send(signal.SIGTERM)
            self.wait(seconds)
        with suppress(OSError, ValueError):
            self._process.stdin.close()
        return self.wait(END_SECONDS)

    def _listen(self) -> None:
        for line in self._process.stdout:
            text = plain(line.decode("utf-8", "replace").rstrip(), LONGEST_LINE)
            with self._lock:
                self._lines.append(text)
                self._count += 1

    def _wait(self) -> None:
        said = self._told.readline()
        self._told.close()
        self._process.wait()
        self._read.join(2.0)  # a process that it left behind may hold the pipe
        self._code = int(said) if said else -signal.SIGKILL
        with suppress(OSError, ValueError):
            self._process.stdin.close()
        self._over.set()
