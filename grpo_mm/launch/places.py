"""Where workers run: what a launch asks of Ray, or of this machine. A worker's methods are called from afar and answer with futures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo_mm.launch.settings import Launch

CALL_SECONDS = 60.0
"""A worker that does not answer a short question for so long is gone."""


class Gone(Exception):
    """A worker that does not answer any more, or cannot at this moment; says which and why."""


@dataclass(frozen=True)
class Wanted:
    """What one worker takes of a machine."""

    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        """Example: "1 CPU, 2 GPU, 1 eyes"."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items() if amount) or "nothing"


class Worker(Protocol):
    """One object of `workers`, somewhere."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Its answer, or what it raised; Gone where it cannot answer."""
        ...


class Place(Protocol):
    """Machines to put workers on."""

    name: str
    """For messages."""

    def gpus(self) -> float:
        """How many there are."""
        ...

    def trainers(self, launch: Launch, wanted: Wanted) -> Sequence[Worker]:
        """`launch.trainers` trainer workers, all or none; those of an earlier call are given up.

        Raises:
            UserError: there is no room for them within `launch.wait_minutes`: what is missing.
        """
        ...

    def service(self, name: str, wanted: Wanted, settings: Mapping[str, Any]) -> Worker:
        """A service worker made with `settings`; it may have to wait for a place, and comes back elsewhere when its machine is lost."""
        ...

    def missing(self, each: Sequence[Wanted]) -> str:
        """Why there is no room for them, in words."""
        ...

    def close(self) -> None:
        """Gives up all workers."""
        ...


def asked(worker: Worker, method: str, *arguments: Any, seconds: float = CALL_SECONDS) -> Any:
    """The answer of a worker within `seconds`; raises Gone if there is none, else what the method raised."""
    return within(worker.call(method, *arguments), seconds, f"no answer to {method}")


def within(future: Future[Any], seconds: float, what: str) -> Any:
    """The result of a future; raises Gone if it takes longer."""
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        raise Gone(f"{what} within {seconds:g} seconds") from None


def of_all(workers: Sequence[Worker], method: str, *arguments: Any, seconds: float = CALL_SECONDS) -> list[Any]:
    """The answers of all, who are asked at once; raises as `asked`."""
    futures = [worker.call(method, *arguments) for worker in workers]
    return [within(future, seconds, f"no answer to {method}") for future in futures]


def map_future(future: Future[Any], error: Callable[[BaseException], BaseException]) -> Future[Any]:
    """The same answer; what was raised goes through `error`."""
    found: Future[Any] = Future()

    def done(first: Future[Any]) -> None:
        raised = first.exception()
        if raised is None:
            found.set_result(first.result())
        else:
            found.set_exception(error(raised))

    future.add_done_callback(done)
    return found
