"""One launch: services up, trainers started, what dies started again, until the run has come to its end or was asked to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.launch.again import Ended, Start, why_not_again
from grpo_mm.launch.places import Gone, Place, Wanted, Worker, asked, of_all
from grpo_mm.launch.ranks import environments, in_order
from grpo_mm.launch.services import Services, ToServe
from grpo_mm.launch.settings import Launch
from grpo_mm.processes.services import STARTS

LOOK_SECONDS = 0.5
HEARD_SECONDS = 45.0
"""After one trainer has failed the others have so long to say why and to end, before they are killed."""
END_SECONDS = 20.0
"""How long those that are killed are waited for: a node may be gone."""
PLACED_SECONDS = 300.0
"""How long a worker that has a place may take until it answers: Ray may install something first."""
FREE_SECONDS = 60.0
"""How long a process that was given up may still hold the run folder."""


@dataclass(frozen=True)
class Job:
    """What is launched."""

    run: str
    """The run folder, as the trainers see it."""
    folder: str
    """Their working folder."""
    command: Sequence[str]
    """Of a trainer."""
    first: Sequence[str]
    """What is added to it the first time, such as --fresh."""
    environment: Mapping[str, str]
    launch: Launch
    trainer: Wanted
    services: Sequence[ToServe]


class Launcher:
    """`launch()` runs a job on a place; `stop` may be called meanwhile, from a signal handler too."""

    def __init__(self, job: Job, place: Place, *, told: Callable[[str], None], stop_asked: Callable[[], bool]) -> None:
        """told: gets lines for who started it. stop_asked: whether somebody has asked from elsewhere that the run stops."""
        self.job, self.place, self._told, self._stop_asked = job, place, told, stop_asked
        self._signals: list[int] = []
        self._services = Services(place, job.launch, told=told)
        self._workers: Sequence[Worker] = ()
        self._newest = -1
        self._home = ""
        """Name of the node where the newest checkpoint was seen."""
        self.starts: list[Start] = []

    def stop(self, number: int = signal.SIGTERM) -> None:
        """The step under way is finished and a checkpoint written; a second time the run ends at once."""
        self._signals.append(number)

    def launch(self) -> int:
        """Until the run has ended; its exit code.

        Raises:
            UserError: no room, a service that does not come up, a run folder that was lost with its node.
        """
        try:
            self._services.start(self.job.services, until=lambda: bool(self._signals))
            while True:
                if self._signals:
                    return 128 + self._signals[0]
                start = self._start()
                self.starts.append(start)
                if start.code == 0 or start.code > 128:
                    return start.code
                if self._signals and start.ended_by(self._signals):
                    return 128 + self._signals[0]
                if self._signals:
                    self._told(f"{start.words()}, after the run was asked to stop; its checkpoints are intact")
                    return 3
                why_not = why_not_again(self.starts, most=self.job.launch.restarts)
                if why_not is not None:
                    self._told(f"{start.words()}; it is not begun again: {why_not}")
                    return start.code
                at = f"step {start.checkpoint}" if start.checkpoint >= 0 else "the beginning"
                self._told(
                    f"{start.words()}; the run is begun again from {at} ({len(self.starts)} of at most {self.job.launch.restarts})"
                )
        finally:
            self._services.end()
            self.place.close()

    def _start(self) -> Start:
        """Once, from the placing of the trainers to their end."""
        try:
            return self._begin()
        except Gone as gone:
            return Start((Ended(0, None, (str(gone),)),), self._newest)

    def _begin(self) -> Start:
        seats = self._seats()
        order = in_order(seats)
        workers, seats = [self._workers[i] for i in order], [seats[i] for i in order]
        self._check_home(seats)
        again = bool(self.starts)
        if again:
            asked(workers[0], "wait_until_free", self.job.run, FREE_SECONDS, seconds=FREE_SECONDS + 30)
        port = asked(workers[0], "free_port")
        own = environments(seats, address=seats[0]["host"], port=port)
        of_all(workers, "told", self._services.where())
        command = [*self.job.command, *(() if again else self.job.first)]
        more = {**self.job.environment, STARTS: str(len(self.starts) + 1)}
        begun = [
            worker.call("begin", command, {**more, **each}, self.job.folder)
            for worker, each in zip(workers, own, strict=True)
        ]
        ends = {worker.call("ended"): rank for rank, worker in enumerate(workers)} if _all_well(begun) else {}
        return self._watch(workers, seats, ends)

    def _seats(self) -> list[dict[str, Any]]:
        """Where trainers are: where they were, if all still answer, else on new places."""
        about = (self.job.folder, self.job.run)
        if self._workers:
            try:
                return of_all(self._workers, "about", *about)
            except Gone:
                self._told("a trainer does not answer any more: new places are looked for")
        self._workers = self.place.trainers(self.job.launch, self.job.trainer)
        return of_all(self._workers, "about", *about, seconds=PLACED_SECONDS)

    def _check_home(self, seats: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError where the run would begin from nothing although it had come further."""
        newest = max(seat["checkpoint"] for seat in seats)
        if newest < self._newest:
            raise UserError(
                f"the checkpoint of step {self._newest} lay on node {self._home}, which is gone, and no other node sees the run folder "
                f"{self.job.run}; it is gone with that node. Put `runs_dir` on a disk that all nodes share. To begin anew on the nodes "
                "that are left give the same command again."
            )
        self._newest = newest
        self._home = next(seat["node"] for seat in seats if seat["checkpoint"] == newest)

    def _watch(
        self, workers: Sequence[Worker], seats: Sequence[Mapping[str, Any]], ends: dict[Future[Any], int]
    ) -> Start:
        """Until all trainers have ended."""
        found: list[Ended] = []
        line, sent, give_up, told_of = 0, 0, None, self._services.where()
        if not ends:
            found = [Ended(rank, None, node=seat["node"]) for rank, seat in enumerate(seats)]
        while ends:
            done, _ = wait(ends, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
            line = self._hear(workers[0], line)
            for future in done:
                found.append(self._end_of(future, ends.pop(future), workers, seats))
            where = self._services.look()
            if where != told_of:
                told_of = where
                for worker in workers:
                    worker.call("told", where)
            if not self._signals and self._stop_asked():
                self._told("the run was asked to stop: the step under way is finished")
                self.stop()
            for number in self._signals[sent:]:
                sent += 1
                for worker in workers:
                    worker.call("send", number)
                minutes = self.job.launch.drain_minutes if sent == 1 else HEARD_SECONDS / 60
                give_up = time.monotonic() + 60 * minutes
            if give_up is None and any(end.code != 0 for end in found):
                give_up = time.monotonic() + HEARD_SECONDS
            if give_up is not None and time.monotonic() > give_up and ends:
                # What ends late would take the place of the next start from it.
                wait([worker.call("end") for worker in workers], timeout=END_SECONDS)
                names = ", ".join(str(rank) for rank in sorted(ends.values()))
                self._told(f"trainers {names} did not end by themselves and were killed")
                found += [Ended(rank, None, node=seats[rank]["node"]) for rank in ends.values()] if not found else []
                ends = {}
        self._hear(workers[0], line)
        self._tell_of_others(found)
        return Start(tuple(found), self._look_for_checkpoint(workers, seats))

    def _end_of(
        self, future: Future[Any], rank: int, workers: Sequence[Worker], seats: Sequence[Mapping[str, Any]]
    ) -> Ended:
        node = seats[rank]["node"]
        try:
            code = future.result()
            said = asked(workers[rank], "said", 0)[1]
        except Gone:
            return Ended(rank, None, node=node)
        return Ended(rank, code, tuple(said[-30:]), node)

    def _hear(self, worker: Worker, line: int) -> int:
        """What rank 0 says is what the run says."""
        try:
            line, said = asked(worker, "said", line)
        except Gone:
            return line
        for text in said:
            self._told(text)
        return line

    def _tell_of_others(self, found: Sequence[Ended]) -> None:
        for end in found:
            if end.rank and end.code not in (0, None, *(128 + number for number in self._signals)):
                for text in end.said[-8:]:
                    self._told(f"[trainer {end.rank}] {text}")

    def _look_for_checkpoint(self, workers: Sequence[Worker], seats: Sequence[Mapping[str, Any]]) -> int:
        found = []
        for worker, seat in zip(workers, seats):
            try:
                found.append((asked(worker, "about", self.job.folder, self.job.run)["checkpoint"], seat["node"]))
            except (Gone, UserError):
                continue
        if found and max(found)[0] > self._newest:
            self._newest, self._home = max(found)
        return self._newest


def _all_well(begun: Sequence[Future[Any]]) -> bool:
    """Whether all have started; a worker that is gone by now is found again by its place."""
    try:
        for future in begun:
            future.result(timeout=60.0)
    except (Gone, TimeoutError):
        return False
    return True


def while_stopping_on_signals(launcher: Launcher) -> Callable[[], None]:
    """SIGTERM and Ctrl-C stop the launcher's run; gives what puts the handlers back. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def note(number: int, _frame: Any) -> None:
        launcher.stop(number)
        os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return put_back
