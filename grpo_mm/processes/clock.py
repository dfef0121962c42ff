"""Where the time goes, by phase, and how many network calls were made."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NETWORK_CALLS = tuple(f"{name}_calls" for name in ("rollout", "train", "value", "ref", "old", "ema"))
"""Counters of network calls; the others count what rewards and judges were asked."""


class Clock:
    """Seconds by phase (exclusive: an inner phase is not counted in the outer one) and counts by name.

    Every thread has its own phases: what runs beside the main thread is charged as well, so that the sum may exceed the
    time that passed.
    """

    def __init__(self, *, sync: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self._sync = sync and torch.cuda.is_available()
        self._thread = threading.local()
        self._lock = threading.Lock()

    def _switch(self, enter: str | None = None, *, leave: bool = False) -> None:
        """Charges what passed since the last change to the innermost phase, then enters or leaves one."""
        if self._sync:
            torch.cuda.synchronize()
        now, thread = time.perf_counter(), self._thread
        stack = thread.__dict__.setdefault("stack", [])
        if stack:
            with self._lock:
                self.seconds[stack[-1]] += now - thread.since
        thread.since = now
        if enter is not None:
            stack.append(enter)
        if leave:
            stack.pop()

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """The seconds and counts since the last call."""
        self._switch()
        with self._lock:
            seconds, counts = dict(self.seconds), dict(self.counts)
            self.seconds.clear()
            self.counts.clear()
        return seconds, counts


_current = Clock()


def use(clock: Clock) -> Clock:
    """Makes `clock` the one that `phase` and `count` write to."""
    global _current
    _current = clock
    return clock


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Charges the time inside to `name`: rollout_network, train_network, ref_network, decode, reward, …"""
    clock = _current
    clock._switch(name)
    try:
        yield
    finally:
        clock._switch(leave=True)


def count(name: str, number: int) -> None:
    """Adds to a counter; one network call is one row through the network once, guidance counts twice."""
    with _current._lock:
        _current.counts[name] += number
