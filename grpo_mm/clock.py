"""Where the time goes, by phase, and how many network calls were made."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds by phase (exclusive: an inner phase is not counted in the outer one) and counts by name."""

    def __init__(self, *, sync: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self._sync = sync and torch.cuda.is_available()
        self._stack: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        if self._sync:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """The seconds and counts since the last call."""
        self._switch()
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
    clock._switch()
    clock._stack.append(name)
    try:
        yield
    finally:
        clock._switch()
        clock._stack.pop()


def count(name: str, number: int) -> None:
    """Adds to a counter; one network call is one row through the network once, guidance counts twice."""
    _current.counts[name] += number
