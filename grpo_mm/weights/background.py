"""A checkpoint that is written beside training: its tensors are copied at once, the files follow in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

from torch import Tensor

from grpo_mm.weights.checkpoint import Checkpoint
from grpo_mm.weights.shard_files import Piece, piece_of


class Writer:
    """One checkpoint at a time; what went wrong is raised by the next call of any method but `end`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Waits for the one before, then starts this one."""
        self.wait()

        def work() -> None:
            try:
                write()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="grpo_mm-checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        self.end()
        self.check()

    def check(self) -> None:
        """Raises what went wrong, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def end(self) -> None:
        """As `wait`, for a run that ends for another reason."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def copied(checkpoint: Checkpoint) -> Checkpoint:
    """In main memory, and with nothing in common with what training goes on to change; of tensors that are cut, this process's part."""
    tensors = {file: {name: _copy(t) for name, t in named.items()} for file, named in checkpoint.tensors.items()}
    return Checkpoint(tensors, deepcopy(dict(checkpoint.state)))


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes of what `copied` makes here."""
    pieces = (piece_of(tensor).rows for named in checkpoint.tensors.values() for tensor in named.values())
    return sum(rows.numel() * rows.element_size() for rows in pieces)


def free_memory() -> int | None:
    """Bytes of main memory that this machine can still give; None where it does not say."""
    try:
        lines: Mapping[str, str] = dict(
            line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
        )
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _copy(tensor: Tensor) -> Piece:
    piece = piece_of(tensor)
    return piece.with_rows(piece.rows.detach().to("cpu", copy=True).contiguous())
