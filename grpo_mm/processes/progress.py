"""How far the work at hand is, for whoever tells it: "texts, 48 of 128". Costs nothing where nobody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, int, int], None]
"""(what, how many are done, of how many), on this process."""

_listener: Listener | None = None


def report(what: str, done: int, total: int) -> None:
    """Called between pieces of work, by whoever does it."""
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
