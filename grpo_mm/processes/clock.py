"""Where the time goes, by phase, and how many network calls were made."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from grpo_mm.processes.roles import Busy, Role, role_of

NETWORK_CALLS = tuple(f"{name}_calls" for name in ("rollout", "train", "value", "ref", "old", "ema"))
"""Counters of network calls; the others count what rewards and judges were asked."""


class Event(Protocol):
    """A mark among the work that a device has been given."""

    def record(self) -> None:
        """Puts the mark behind all work so far."""
        ...

    def synchronize(self) -> None:
        """Waits until the device has come to it."""
        ...

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds from this mark to a later one, by the device's own clock."""
        ...


def events_of(device: torch.device) -> Callable[[], Event] | None:
    """Makes marks on a CUDA device; None elsewhere, where work is done when a call returns."""
    return partial(torch.cuda.Event, enable_timing=True) if device.type == "cuda" else None


@dataclass(frozen=True)
class Taken:
    """What a clock has seen since it was last asked. `main` and `rest` add up to `wall`, by the clock that measures them."""

    wall: float
    """Seconds that passed on the host."""
    main: Mapping[str, float]
    """Seconds of the thread that made the clock, by phase, without the phases inside."""
    rest: float
    """Its seconds in no phase."""
    beside: Mapping[str, float]
    """Seconds of all other threads together, by phase."""
    busy: Mapping[Role, float]
    """Seconds in which somebody did the work of a role, see `roles`."""
    counts: Mapping[str, int]


class Clock:
    """Seconds by phase (exclusive: an inner phase is not counted in the outer one) and counts by name.

    Every thread has its own phases: what runs beside the main thread is charged as well, apart.

    A device works on after the call that gave it work: by the host's time that would be charged to whoever waits next. With `events`
    the phases of the thread that made the clock are measured by the device's, from mark to mark, without waiting before `take`;
    they still add up to the time that passed.
    """

    def __init__(
        self,
        *,
        sync: bool = False,
        events: Callable[[], Event] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """now: the host's clock, in seconds."""
        self.counts: dict[str, int] = defaultdict(int)
        self._main: dict[str | None, float] = defaultdict(float)
        """None: in no phase."""
        self._others: dict[str, float] = defaultdict(float)
        self._sync = sync and torch.cuda.is_available()
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._events, self._owner, self._now = events, threading.get_ident(), now
        self._marks: list[tuple[str | None, Event]] = []
        """(the phase that ends there, the mark)."""
        self._began = now()
        self._thread.since = self._began
        self._busy = Busy(self._began)
        self._busy.switch(None, role_of([], is_main=True), self._began)

    def _switch(self, enter: str | None = None, *, leave: bool = False) -> float:
        """Charges what passed since the last change to the innermost phase, then enters or leaves one; the time."""
        is_main, thread = threading.get_ident() == self._owner, self._thread
        stack: list[str] = thread.__dict__.setdefault("stack", [])
        if self._sync:
            torch.cuda.synchronize()
        now, before = self._now(), role_of(stack, is_main=is_main)
        if is_main and self._events is not None:
            event = self._events()
            event.record()
            self._marks.append((stack[-1] if stack else None, event))
        elif is_main:
            self._main[stack[-1] if stack else None] += now - thread.since
        elif stack:
            with self._lock:
                self._others[stack[-1]] += now - thread.since
        thread.since = now
        if enter is not None:
            stack.append(enter)
        if leave:
            stack.pop()
        with self._lock:
            self._busy.switch(before, role_of(stack, is_main=is_main), now)
        return now

    def _read_marks(self) -> None:
        """Charges what lies between marks; the last one stays, as the next beginning."""
        if not self._marks:
            return
        self._marks[-1][1].synchronize()
        for (_, before), (phase, event) in zip(self._marks, self._marks[1:]):
            self._main[phase] += before.elapsed_time(event) / 1000
        del self._marks[:-1]

    def take_all(self) -> Taken:
        """Since the last call of this, or of `take`."""
        now = self._switch()
        with self._lock:
            self._read_marks()
            if self._events is not None:  # the device may have gone on for a while
                now = self._now()
            rest, wall, self._began = self._main.pop(None, 0.0), now - self._began, now
            found = Taken(wall, dict(self._main), rest, dict(self._others), self._busy.take(now), dict(self.counts))
            for kept in (self._main, self._others, self.counts):
                kept.clear()
        return found

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """The seconds of all threads by phase, which may exceed the time that passed, and counts since the last call."""
        found = self.take_all()
        names = dict.fromkeys([*found.main, *found.beside])
        return {name: found.main.get(name, 0.0) + found.beside.get(name, 0.0) for name in names}, dict(found.counts)


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
        kept = _kept_in.get()
        (_current.counts if kept is None else kept)[name] += number


@contextmanager
def counts_kept_in(kept: Counter[str]) -> Iterator[None]:
    """What is counted within goes there instead of the clock, for whoever adds it (`count`) when its time has come.

    Threads that are started within count there too, if they run in a copy of the context (`contextvars.copy_context`).
    """
    token = _kept_in.set(kept)
    try:
        yield
    finally:
        _kept_in.reset(token)


_kept_in: ContextVar[Counter[str] | None] = ContextVar("counts", default=None)
