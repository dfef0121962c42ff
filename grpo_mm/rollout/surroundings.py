"""What a reward finds around it belongs to the run: what it changes of that is put back, and told."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grpo_mm.outside import reason

log = logging.getLogger(__name__)

_told: set[tuple[str, str]] = set()


@contextmanager
def kept(name: str, what: str = "reward") -> Iterator[None]:
    """Puts back what reward `name` changes of the process, and tells it once for each setting. So it is for importing and
    making what a config names.

    Put back: the settings below, random states (python, numpy, torch, the current CUDA device), the filters of warnings, an
    alarm that was left ticking, and what Ctrl-C and SIGTERM do. Not put back, since programs rely on it after a first import:
    the environment, other signal handlers, `sys.path`, patched modules; nor is what is printed held back. A reward in a
    process of its own (`isolate: true`) keeps all of that to itself.
    """
    with _own_signals() as lost:
        yield from _kept(f"{what} {name!r}", lost)


def changed_by(name: str) -> list[str]:
    """What reward `name` was seen to change of the process so far, in words."""
    return sorted(what for who, what in _told if who == f"reward {name!r}")


def interrupted() -> bool:
    """Whether a KeyboardInterrupt that was just caught comes from the user; within `kept`, one that code raises itself does not."""
    return not _watching or _watching[-1].interrupted


def _kept(name: str, lost: Callable[[], list[str]]) -> Iterator[None]:
    before = [(what, get(), put) for what, get, put in _settings()]
    drawn, filters, modules = _random_states(), list(warnings.filters), len(sys.modules)
    ticking = _ticking()
    try:
        yield
    finally:
        changed = [what for (what, value, put), (_, get, _) in zip(before, _settings()) if _put_back(value, get, put)]
        if warnings.filters != filters:
            _set_filters(filters)
            if len(sys.modules) == modules:  # else libraries did as they were imported
                changed.append("the filters of warnings")
        if not ticking and _ticking():
            signal.setitimer(signal.ITIMER_REAL, 0)
            changed.append("the alarm clock")
        for put, state in drawn:
            put(state)
        changed += lost()
        new = [what for what in changed if (name, what) not in _told]
        if new:
            _told.update((name, what) for what in new)
            log.warning("%s changed %s of the process: put back after each call", name, ", ".join(new))


class _Watch:
    """What a signal does, noting whether it interrupts. The handler may put another in its own place, as that of a run does."""

    def __init__(self, number: int) -> None:
        self.number, self.inner, self.interrupted = number, signal.getsignal(number), False

    def __call__(self, number: int, frame: Any) -> None:
        self.put_back()
        try:
            self.inner(number, frame)
        except BaseException:
            self.interrupted = True
            raise
        finally:
            self.inner = signal.signal(number, self)

    def put_back(self) -> bool:
        """Whether another handler stood there."""
        return signal.signal(self.number, self.inner) is not self


_watching: list[_Watch] = []
"""Of Ctrl-C, the innermost last."""


@contextmanager
def _own_signals() -> Iterator[Callable[[], list[str]]]:
    """Only the main thread can set them, and only those set from Python can be put back."""
    here = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if here and signal.getsignal(n) is not None]
    watches = [_Watch(number) for number in numbers]
    for watch in watches:
        signal.signal(watch.number, watch if callable(watch.inner) else watch.inner)
    own = [watch for watch in watches if watch.number == signal.SIGINT]
    _watching.extend(own)

    def lost() -> list[str]:
        return [
            f"what {signal.Signals(watch.number).name} does"
            for watch in watches
            if signal.getsignal(watch.number) is not (watch if callable(watch.inner) else watch.inner)
        ]

    try:
        yield lost
    finally:
        for watch in watches:
            watch.put_back()
        del _watching[len(_watching) - len(own) :]


def seed_all(seed: int) -> None:
    """Global generators start from `seed`: what a reward draws follows from what it is asked, in a resumed run too."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


Setting = tuple[str, Callable[[], Any], Callable[[Any], Any]]


def _settings() -> list[Setting]:
    """(what it is, how to read it, how to set it); each costs about a microsecond to read."""
    return [
        ("the working folder", _working_folder, lambda folder: folder and os.chdir(folder)),
        ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        ("torch's default device", _default_device, lambda device: torch.set_default_device(device)),
        ("torch's gradient mode", torch.is_grad_enabled, lambda on: torch.set_grad_enabled(on)),
        ("torch's threads", torch.get_num_threads, torch.set_num_threads),
        ("torch's deterministic mode", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        ("torch's matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        ("torch's anomaly mode", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        ("the current CUDA device", _cuda_device, lambda index: index is not None and torch.cuda.set_device(index)),
        ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        ("sys.stdout", lambda: sys.stdout, lambda stream: setattr(sys, "stdout", stream)),
        ("sys.stderr", lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream)),
        ("the level below which nothing is logged", lambda: logging.root.manager.disable, logging.disable),
        ("the time limit of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
    ]


def _put_back(value: Any, get: Callable[[], Any], put: Callable[[Any], Any]) -> bool:
    try:
        if get() == value:
            return False
        put(value)
    except Exception as error:
        log.warning("what a reward changed of the process cannot be put back: %s", reason(error))
    return True


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _default_device() -> torch.device | None:
    """None where none was set: setting "cpu" would cost every call of torch something."""
    device = torch.get_default_device()
    return None if device.type == "cpu" else device


def _cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _random_states() -> list[tuple[Callable[[Any], Any], Any]]:
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (random.setstate, random.getstate()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append((torch.cuda.set_rng_state, torch.cuda.get_rng_state()))
    if "numpy" in sys.modules:
        numpy_random = sys.modules["numpy"].random
        states.append((numpy_random.set_state, numpy_random.get_state()))
    return states


def _ticking() -> bool:
    """Whether SIGALRM will come; only the main thread can say and stop it."""
    return threading.current_thread() is threading.main_thread() and signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _set_filters(filters: list[Any]) -> None:
    warnings.simplefilter("default")  # tells the module that its filters changed
    warnings.filters[:] = filters
