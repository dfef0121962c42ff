"""How far the work at hand is, for whoever tells it: "texts, 48 of 128". Costs next to nothing where nobody listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, int, int], None]
"""(what, how many are done, of how many), on this process."""

_listener: Listener | None = None
_last: tuple[str, int, int, float] | None = None


def report(what: str, done: int, total: int) -> None:
    """Called between pieces of work, by whoever does it."""
    global _last
    _last = (what, done, total, time.monotonic())
    if _listener is not None:
        _listener(what, done, total)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """All reports within go to `listener`, and to nobody else."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def last() -> str:
    """The last report, and how long ago it was; for people."""
    if _last is None:
        return "the beginning of the run"
    what, done, total, since = _last
    return f"{what}, {done} of {total}, for {time.monotonic() - since:.0f} s"
