"""Asynchronous work from code that is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any


def run_apart(work: Coroutine[Any, Any, Any]) -> Any:
    """The result, from a thread of its own: the caller's may already run an event loop.

    A daemon, so that a call which was given up does not keep the process alive.
    """
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(work))
        except BaseException as error:  # for the caller to see
            done.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), name="grpo_mm-asking", daemon=True).start()
    return done.result()
