"""What processes tell each other beside their collectives: that they are there, what they are at, and why one of them ends.

A process that ends leaves its reason in the store by which all of them met. Those that wait for it find it there, instead of a broken
connection, and those that cannot look (they hang, or wait on a device) are ended by a thread of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch

from grpo_mm.errors import TrainingStopped, UserError
from grpo_mm.outside import plain, reason
from grpo_mm.processes import progress

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""A process that says nothing for so long, after a connection broke, is gone."""
GRACE_SECONDS = 10.0
"""After the end of another was told, a process has so long to end by itself."""
LATE_SECONDS = 30.0
"""How much later than the communication itself its time-out is noticed here: it may not raise (NCCL)."""
_FIRST = "first"
_RUNS = itertools.count()


@dataclass(frozen=True)
class Ended:
    """Why a process ended, or what was seen of it."""

    rank: int
    text: str
    """For people: names the process."""
    is_ours: bool = False
    """The user can fix it."""

    def error(self) -> Exception:
        return UserError(self.text) if self.is_ours else TrainingStopped(self.text)


class Notices:
    """Of one process of several; a thread says once a second that it is there."""

    def __init__(self, store: Any, *, rank: int, world: int, limit: timedelta) -> None:
        """store: a `torch.distributed.Store` that all processes reach. limit: how long one waits for another."""
        self._store = store.clone() if hasattr(store, "clone") else store  # a connection of our own
        self._rank, self._world, self._limit = rank, world, limit
        self._waits_since: float | None = None
        self._over = threading.Event()
        self._found: Ended | None = None
        self._is_lost = False
        """The store, with the process that kept it."""
        self._beats = self._words = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, what ends this process is told to the others, and what has ended another ends this one.

        Raises:
            UserError, TrainingStopped: another process ended, and why; or one did not come in time, and what it was at.
        """
        self._over.clear()
        watching = threading.Thread(target=self._watch, name="grpo_mm-notices", daemon=True)
        watching.start()
        try:
            yield
        except BaseException as error:
            told = self._of_another(error)
            if told is None:
                self._post(Ended(self._rank, f"process {self._rank}{_words(error)}", isinstance(error, UserError)))
            self._stay_until_heard()
            if told is not None:
                raise told.error() from error
            raise
        finally:
            self._over.set()
            watching.join(2 * BEAT_SECONDS)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around work that others have to take part in."""
        outer, self._waits_since = self._waits_since, self._waits_since or time.monotonic()
        try:
            yield
        finally:
            self._waits_since = outer

    def all_say(self, word: str, *, within_seconds: float = GRACE_SECONDS) -> bool:
        """Whether all processes come here with the same word in that time; they need not."""
        self._words += 1
        until = time.monotonic() + within_seconds
        keys = [f"word{self._words}/{rank}" for rank in range(self._world)]
        try:
            self._store.set(keys[self._rank], word)
            while not all(self._store.check([key]) for key in keys):
                if time.monotonic() > until:
                    return False
                time.sleep(0.1)
            return all(self._store.get(key).decode() == word for key in keys)
        except Exception:  # it went with the process that kept it
            return False

    def _of_another(self, error: BaseException) -> Ended | None:
        """What is behind a broken connection; None for what went wrong here."""
        if not _is_of_connection(error):
            return None
        until, before = time.monotonic() + SILENT_SECONDS, self._heard()
        while time.monotonic() < until:
            told = self._first()
            if told is not None:
                return told
            time.sleep(0.2)
        here = self._heard()
        late = "imed out" in str(error)
        silent = [rank for rank in range(self._world) if rank != self._rank and here.get(rank) == before.get(rank)]
        if silent:
            said = here.get(silent[0])
            last = "" if said is None else f" The last that was heard of it: {said['at']}."
            how = (
                "does not answer: does it hang in code that lets no other thread run"
                if late
                else "ended without a word: was it killed (for want of memory?)"
            )
            text = f"process {silent[0]} {how}, or is its machine gone?{last}"
            return self._post(Ended(silent[0], text))
        return self._post(self._late(here)) if late else None

    def _late(self, heard: dict[int, dict[str, Any]]) -> Ended:
        """Who does not come, as far as they say what they are at."""
        busy = [rank for rank, said in sorted(heard.items()) if not said["waits"] and rank != self._rank]
        rank = busy[0] if busy else self._rank
        who = f"process {rank}, which is at: {heard[rank]['at']}" if busy else "the others, which wait as well"
        minutes = self._limit.total_seconds() / 60
        text = (
            f"process {self._rank} has waited {minutes:g} minutes (distributed.timeout_minutes) for {who}. If that may take so long, "
            "raise it; a reward that hangs is given up after its own `timeout_seconds`."
        )
        return Ended(rank, text)

    def _post(self, found: Ended) -> Ended:
        """The first that any process posts is what all end with."""
        with suppress(Exception):  # it may have gone with the process that kept it
            found = Ended(**json.loads(self._store.compare_set(_FIRST, "", json.dumps(asdict(found)))))
        self._found = self._found or found
        return self._found

    def _stay_until_heard(self) -> None:
        """The store may end with this process."""
        until, self._waits_since = time.monotonic() + 3 * BEAT_SECONDS, None
        keys = [f"heard/{rank}" for rank in range(self._world)]
        with suppress(Exception):
            self._store.set(keys[self._rank], "")
            while not self._store.check(keys) and time.monotonic() < until:
                time.sleep(0.1)

    def _first(self) -> Ended | None:
        """What was posted first, if it was, or that the store is gone."""
        if self._found is not None:
            return self._found
        try:
            if self._store.check([_FIRST]):
                self._found = Ended(**json.loads(self._store.get(_FIRST)))
                self._store.set(f"heard/{self._rank}", "")
            return self._found
        except Exception:
            self._is_lost = True
            if self._found is not None:
                return self._found
            text = "process 0, by which the others meet, ended without a word: was it killed (for want of memory?), or is its machine gone?"
            self._found = Ended(0, text)
            return self._found

    def _heard(self) -> dict[int, dict[str, Any]]:
        """Rank → what it said last: its number of beats, whether it waits, what it is at."""
        if self._is_lost:
            return {}
        try:
            keys = {rank: f"beat/{rank}" for rank in range(self._world)}
            return {r: json.loads(self._store.get(key)) for r, key in keys.items() if self._store.check([key])}
        except Exception:
            return {}

    def _beat(self) -> None:
        self._beats += 1
        waits = self._waits_since is not None
        said = {"beat": self._beats, "waits": waits, "at": "waiting for others" if waits else progress.last()}
        try:
            self._store.set(f"beat/{self._rank}", json.dumps(said))
        except Exception:
            return  # `_first` tells

    def _watch(self) -> None:
        told_at: float | None = None
        while not self._over.wait(BEAT_SECONDS):
            now, since = time.monotonic(), self._waits_since
            if self._found is None:
                self._beat()
                if since is not None and now - since > self._limit.total_seconds() + LATE_SECONDS:
                    self._post(self._late(self._heard()))
            found = self._first()
            if found is not None:
                told_at = told_at or now
                if now - told_at > GRACE_SECONDS and not self._over.is_set():
                    sys.stderr.write(f"{found.text}\nprocess {self._rank} is ended: it was at: {progress.last()}\n")
                    sys.stderr.flush()
                    os._exit(2 if found.is_ours else 3)


def of_this_run(*, rank: int, world: int, limit: timedelta) -> Notices | None:
    """In the store by which the processes met; None for a process that is alone. All make as many, in the same order."""
    if world == 1:
        return None
    from torch.distributed import distributed_c10d

    store = torch.distributed.PrefixStore(f"notices/{next(_RUNS)}", distributed_c10d._get_default_store())
    return Notices(store, rank=rank, world=world, limit=limit)


def _words(error: BaseException) -> str:
    if isinstance(error, UserError | TrainingStopped):
        return f": {error}"
    return plain(f" ended with {reason(error)}", 1000)


def _is_of_connection(error: BaseException) -> bool:
    if isinstance(error, UserError | TrainingStopped) or not isinstance(error, RuntimeError | OSError | EOFError):
        return False
    here, frame = os.path.join("torch", "distributed", ""), error.__traceback__
    while frame is not None:
        if here in frame.tb_frame.f_code.co_filename:
            return True
        frame = frame.tb_next
    return isinstance(error, torch.distributed.DistError)
