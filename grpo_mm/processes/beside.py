"""A thread beside the main one: work is done there in order, one piece at a time."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch


class Beside:
    """The thread is started with the first piece of work; it does not keep a process that ends from ending."""

    def __init__(self, name: str) -> None:
        self._name, self._work = name, queue.SimpleQueue[tuple[Future, Callable[[], Any]]]()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future:
        """What `work` gives, or raises, when it is asked for."""
        found: Future = Future()
        self._work.put((found, lambda: work(*arguments)))
        if self._thread is None:
            self._thread = threading.Thread(target=_like_here(self._run), name=self._name, daemon=True)
            self._thread.start()
        return found

    def _run(self) -> None:
        while True:
            found, work = self._work.get()
            if not found.set_running_or_notify_cancel():
                continue
            try:
                found.set_result(work())
            except BaseException as error:  # whoever asks for the result gets it
                found.set_exception(error)


def _like_here(work: Callable[[], None]) -> Callable[[], None]:
    """The current CUDA device and the number of threads of torch belong to a thread."""
    device = torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    threads = torch.get_num_threads()

    def run() -> None:
        torch.set_num_threads(threads)
        with contextlib.nullcontext() if device is None else torch.cuda.device(device):
            work()

    return run
