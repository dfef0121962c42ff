"""SIGTERM and Ctrl-C, which a run takes note of between steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Turns SIGTERM and Ctrl-C into a number that the loop reads between steps; a second one acts at once."""
    asked, before = [0], {}

    def note(number: int, _frame: Any) -> None:
        asked[0] = number
        signal.signal(number, before[number])
        os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once\n")

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and the like stay in force
                before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever started us handles signals
        pass
    try:
        yield lambda: asked[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
