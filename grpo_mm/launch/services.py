"""The services of a launch: started, looked at, and where they are at this moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.launch.again import last_words
from grpo_mm.launch.places import Gone, Place, Wanted, Worker
from grpo_mm.launch.settings import ENGINES, Launch
from grpo_mm.processes.services import SCHEME

LOOK_SECONDS = 0.2
LAST_LINES = 8
"""Of a service that does not come up, for who waits."""
AT_FIRST = 2
"""A service that ends so often before it has ever answered is not started again."""


@dataclass(frozen=True)
class ToServe:
    """Processes that share a name: `service://NAME` is one of them."""

    name: str
    wanted: Wanted
    settings: Mapping[str, Any]
    """Of the service worker."""
    replicas: int = 1
    rewards: tuple[str, ...] = ()
    """What they score."""


@dataclass
class _One:
    name: str
    worker: Worker
    said: dict[str, Any] = field(default_factory=dict)
    """What it said last of where it is; empty: not placed yet, or not there."""
    under_way: Future[Any] | None = None
    starts: int = 0
    """That were told of."""
    start: str = ""


class Services:
    """All of a launch, in the order of the job."""

    def __init__(self, place: Place, launch: Launch, *, told: Callable[[str], None]) -> None:
        self._place, self._launch, self._told = place, launch, told
        self._all: list[_One] = []
        self._rewards: dict[str, str] = {}
        self.restarts = 0

    def start(self, wanted: Sequence[ToServe], *, until: Callable[[], bool]) -> None:
        """Returns when all answer, or `until` says that nobody waits any more.

        Raises:
            UserError: no place for one in `wait_minutes`, or no answer in `start_minutes`; one that ends by itself before.
        """
        for each in wanted:
            self._rewards |= dict.fromkeys(each.rewards, each.name)
            for _ in range(each.replicas):
                self._all.append(_One(each.name, self._place.service(each.name, each.wanted, each.settings)))
        all_wanted = [each.wanted for each in wanted for _ in range(each.replicas)]
        began = time.monotonic()
        while not until() and not all(one.said.get("url") for one in self._all):
            self.look()
            passed = (time.monotonic() - began) / 60
            for one in self._all:
                if not one.said and passed > self._launch.wait_minutes:
                    raise UserError(
                        f"{self._place.name} has had no room for the service {one.name} for {self._launch.wait_minutes:g} minutes "
                        f"(launch.wait_minutes): {self._place.missing(all_wanted)}."
                    )
                failures = one.said.get("failures", [])
                if len(failures) >= AT_FIRST:
                    lines = [line for line in failures[-1]["said"][-LAST_LINES:] if line.strip()]
                    said = "\n".join(lines) or "without a word"
                    raise UserError(
                        f"the service {one.name} ended with code {failures[-1]['code']} at its start: {said}"
                    )
                if not one.said.get("url") and passed > self._launch.wait_minutes + self._launch.start_minutes:
                    raise UserError(
                        f"the service {one.name} has not answered for {self._launch.start_minutes:g} minutes (launch.start_minutes)."
                    )
            time.sleep(LOOK_SECONDS)
        for name, there in ({} if until() else self.where()["services"]).items():
            self._told(f"{name} is up at {', '.join(str(one['url']) for one in there)}")

    def look(self) -> dict[str, Any]:
        """Asks those that are not being asked, and gives `where`; never waits."""
        for one in self._all:
            if one.under_way is not None and one.under_way.done():
                self._take(one, one.under_way)
                one.under_way = None
            if one.under_way is None:
                one.under_way = one.worker.call("where")
        return self.where()

    def where(self) -> dict[str, Any]:
        """What `processes.services` reads."""
        services: dict[str, list[dict[str, Any]]] = {}
        for one in self._all:
            there = {"url": one.said.get("url"), "start": one.said.get("start", "")}
            services.setdefault(one.name, []).append(there)
        engines = [f"{SCHEME}{ENGINES}/{i}" for i in range(len(services.get(ENGINES, ())))]
        return {"services": services, "rewards": dict(self._rewards), "engines": engines}

    def end(self) -> None:
        """All that can be reached."""
        asked = [one.worker.call("end") for one in self._all]
        for future in asked:
            try:
                future.result(timeout=15.0)
            except (Gone, TimeoutError):
                continue

    def _take(self, one: _One, answer: Future[Any]) -> None:
        before = one.said
        try:
            one.said = answer.result()
        except Gone:
            one.said = {}
        if before.get("url") and not one.said.get("url"):
            failures = one.said.get("failures", [])
            how = f": it ended with code {failures[-1]['code']}, {last_words(failures[-1]['said'])}" if failures else ""
            self._told(f"{one.name} is away{how}; it is started again")
        start = one.said.get("start") if one.said.get("url") else None
        if start and start != one.start:
            if one.start:
                self.restarts += 1
                self._told(f"{one.name} is back at {one.said['url']}")
            one.start = start
