"""Several servers with the same weights: rows go to whichever is free, and to the others where one goes away; one that comes back is
given the weights first."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from grpo_mm.errors import TrainingStopped
from grpo_mm.pipelines.vlm.engine_server.asking import Away, Late, Refused, Server, Stale
from grpo_mm.pipelines.vlm.engine_server.wire import Answered, Asked
from grpo_mm.processes.clock import count

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
LOOK_SECONDS = 0.5
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Unit:
    """Answers that are asked together."""

    asked: Asked
    rows: list[int]
    """Of the call."""
    tries: int = 0
    """That may have failed because of what is asked."""
    wrong: int = 0
    """Times that other weights drew it."""
    answered: Answered | None = None


@dataclass(eq=False)
class _Member:
    server: Server
    boot: str | None = None
    """Of the start of the server that is known."""
    ready: bool = False
    """It has the weights, as far as is known."""
    pause: float = FIRST_PAUSE
    again_at: float = 0.0
    why: str = ""
    turn: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Weights:
    """Those that shall draw."""

    version: str
    bring: Callable[[Server, Mapping[str, Any], float], None]
    """(server, what it says of itself, until when): gives them to it."""


class Fleet:
    """check: (address, what a server says of itself), raises for one that cannot serve. revive: called with an address that is away, to
    start it again where that is ours to do."""

    def __init__(
        self, servers: Sequence[Server], *, check: Callable[[str, Mapping[str, Any]], None], revive: Callable[[str], None],
        at_once: int, retries: int, seconds: float,
    ) -> None:  # fmt: skip
        self._members = [_Member(server) for server in servers]
        self._check, self._revive = check, revive
        self._at_once, self._retries, self._seconds = at_once, retries, seconds

    def prepare(self, weights: Weights) -> None:
        """Gives the weights to all servers that are there, side by side; waits until one is.

        Raises:
            TrainingStopped: none came in time, or one does not take them.
        """
        until = time.monotonic() + self._seconds
        for member in self._members:
            member.ready = False
        with ThreadPoolExecutor(len(self._members)) as pool:
            while True:
                failures = [f for f in pool.map(lambda m: self._prepared(m, weights, until), self._members) if f]
                if len(failures) < len(self._members):
                    return
                if time.monotonic() > until:
                    raise TrainingStopped(self._given_up(failures[0]))
                time.sleep(max(0.0, min(m.again_at for m in self._members) - time.monotonic()))

    def draw(self, units: Sequence[Unit], weights: Weights, told: Callable[[int, Sequence[Unit]], None]) -> None:
        """Fills `answered` of every unit, with answers of these weights alone. told: called in this thread with the number of rows that are
        done, and the units that are done since the last call; of each unit once.

        Raises:
            TrainingStopped: a server does not do it, or none is there in time.
        """
        work = _Work(units, time.monotonic() + self._seconds)
        workers = [
            threading.Thread(target=self._worker, args=(member, work, weights), name="grpo_mm-engine", daemon=True)
            for member in self._members
            for _ in range(min(self._at_once, len(units)))
        ]
        try:
            for worker in workers:
                worker.start()
            work.wait(told, lambda: self._given_up(next((m.why for m in self._members if m.why), "")))
        except BaseException as error:
            work.give_up(error)
            raise
        for (
            worker
        ) in workers:  # one may be giving weights to a server that came back, and they must not change meanwhile
            worker.join()

    def _prepared(self, member: _Member, weights: Weights, until: float) -> str:
        """Why it is not ready, or ""."""
        with member.turn:
            try:
                self._make_ready(member, weights, until)
            except Away:
                return member.why
            except Refused as error:
                raise TrainingStopped(f"the engine server {member.server.url} {error}") from None
        return ""

    def _make_ready(self, member: _Member, weights: Weights, until: float) -> None:
        """Raises Away, Refused, and what `check` raises."""
        if member.ready:
            return
        if time.monotonic() < member.again_at:
            raise Away(member.why)
        try:
            state = member.server.state(until=until)
            if state.get("boot") != member.boot:
                self._check(member.server.url, state)
                if member.boot is not None:
                    count("engine_restarts", 1)
                    log.warning(
                        "the engine server %s was started anew; it is given the weights again", member.server.url
                    )
                member.boot = state.get("boot")
            if state["version"] != weights.version:
                weights.bring(member.server, state, until)
        except (Away, Stale) as error:
            self._note(member, error)
            raise Away(member.why) from None
        member.ready, member.pause, member.why = True, FIRST_PAUSE, ""

    def _note(self, member: _Member, error: Exception) -> None:
        if not member.why:
            log.warning(
                "the engine server %s: %s; it is asked again for up to %.0f s", member.server.url, error, self._seconds
            )
        member.ready = False
        if not member.why or not isinstance(error, Late):
            member.why = str(error)
        self._revive(member.server.url)
        member.again_at = time.monotonic() + member.pause
        member.pause = min(2 * member.pause, LONGEST_PAUSE)

    def _worker(self, member: _Member, work: _Work, weights: Weights) -> None:
        try:
            while (unit := work.take(member)) is not None:
                self._try(member, unit, work, weights)
        except BaseException as error:
            work.give_up(error)

    def _try(self, member: _Member, unit: Unit, work: _Work, weights: Weights) -> None:
        try:
            with member.turn:
                if work.is_over:
                    return
                self._make_ready(member, weights, work.until)
        except Away:  # noted
            work.back(unit)
            return
        except Refused as error:
            raise TrainingStopped(f"the engine server {member.server.url} {error}") from None
        try:
            answered = member.server.draw(unit.asked, until=work.until)
        except Stale:
            member.ready = False
            work.back(unit)
        except Away as error:
            unit.tries += error.while_asked
            if not isinstance(error, Late):
                with member.turn:
                    self._note(member, error)
            if unit.tries > self._retries:
                raise TrainingStopped(
                    f"the engine server {member.server.url} failed {unit.tries} times on the same prompt: {error}"
                ) from None
            work.back(unit)
        except Refused as error:
            raise TrainingStopped(f"the engine server {member.server.url} {error}") from None
        else:
            if all(versions == [weights.version] for versions in answered.versions):
                work.done(unit, answered)
                return
            unit.wrong, member.ready = unit.wrong + 1, False
            if unit.wrong > self._retries:
                drew = sorted({version for versions in answered.versions for version in versions})
                raise TrainingStopped(
                    f"the engine server {member.server.url} draws with the weights {drew or 'that it does not name'} after it was given "
                    f"{weights.version!r}: does another run use it as well?"
                )
            work.back(unit)

    def _given_up(self, why: str) -> str:
        urls = ", ".join(member.server.url for member in self._members)
        return f"no engine server ({urls}) gave an answer within {self._seconds:g} seconds: {why or 'they are at work'}"


class _Work:
    """Units that are to be done, shared by threads."""

    def __init__(self, units: Sequence[Unit], until: float) -> None:
        self.until = until
        self._waiting, self._open, self._finished = deque(units), len(units), 0
        self._fresh: list[Unit] = []
        """Done, and not told of."""
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def is_over(self) -> bool:
        return not self._open or self._error is not None

    def take(self, member: _Member) -> Unit | None:
        """One that nobody is at; waits where there may be one later; None at the end."""
        with self._changed:
            while not self.is_over and time.monotonic() < self.until:
                if self._waiting and time.monotonic() >= member.again_at:
                    return self._waiting.popleft()
                self._changed.wait(LOOK_SECONDS)
            return None

    def back(self, unit: Unit) -> None:
        """It is asked again."""
        count("engine_rows_again", len(unit.rows))
        with self._changed:
            self._waiting.appendleft(unit)
            self._changed.notify_all()

    def done(self, unit: Unit, answered: Answered) -> None:
        with self._changed:
            unit.answered = answered
            self._open -= 1
            self._finished += len(unit.rows)
            self._fresh.append(unit)
            self._changed.notify_all()

    def give_up(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def wait(self, told: Callable[[int, Sequence[Unit]], None], late: Callable[[], str]) -> None:
        """Until all are done; raises what a worker has raised, and TrainingStopped when time is up."""
        is_over = False
        while not is_over:
            with self._changed:
                if not self.is_over and not self._fresh:
                    self._changed.wait(LOOK_SECONDS)
                is_over = self.is_over
                if self._error is not None:
                    raise self._error
                if not is_over and time.monotonic() > self.until:
                    raise TrainingStopped(late())
                finished, fresh, self._fresh = self._finished, self._fresh, []
            told(finished, fresh)
