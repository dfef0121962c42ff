"""Does reading take time in proportion? In processor time, which other programs do not add to, and measured again in doubt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def slow_kinds(
    read: Callable[[str], object], texts: Mapping[object, tuple[str, str]], *, allowed: float, floor: float
) -> dict[object, tuple[float, float]]:
    """Kind -> (seconds, seconds allowed) where reading the second of two texts takes over `allowed` times the first's time.

    What takes less than `allowed * floor` seconds is never slow. What seems slow is measured six times: garbage collection
    and shared caches cost processor time too.
    """
    slow = {}
    for kind, (small, large) in texts.items():
        limit, taken = allowed * floor, float("inf")
        for _ in range(6):
            taken = min(taken, _seconds(read, large))
            if taken > limit:
                limit = max(limit, allowed * _seconds(read, small))
            if taken <= limit:
                break
        else:
            slow[kind] = (taken, limit)
    return slow


@contextmanager
def no_more_than(limit_seconds: float) -> Iterator[None]:
    """Fails if the block takes more processor time."""
    start = time.process_time()
    yield
    taken = time.process_time() - start
    assert taken < limit_seconds, f"{taken:.2f} s of processor time; {limit_seconds} allowed"


def _seconds(read: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    read(text)
    return time.process_time() - start
