"""A server of rewards in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch

from grpo_mm.rewards.service.scorers import Scorers
from grpo_mm.rewards.service.server import Limits, application
from grpo_mm.rollout.scoring import Scorer
from grpo_mm.tools.serving.serve import server_of


class Served:
    """`rewards` (by name, or whole entries) at `url` until `close`; at the same port again after `open`."""

    def __init__(
        self,
        rewards: Mapping[str, Any],
        *,
        token: str | None = None,
        limits: Limits | None = None,
        golden: Mapping[str, str] | None = None,
        **gather: Any,
    ) -> None:
        self.rewards = {name: use if isinstance(use, Scorer) else Scorer(use) for name, use in rewards.items()}
        self.token, self.limits, self.port, self.gather = token, limits or Limits(8 * 2**20), 0, gather
        self.golden = dict(golden or {})
        self.paths: list[str] = []
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        scorers = Scorers(self.rewards, torch.device("cpu"), most_seconds=self.limits.seconds)
        scorers.golden = self.golden
        inner = application(scorers, limits=self.limits, token=self.token, versions={"grpo_mm": "test"}, **self.gather)

        async def app(scope, receive, send):
            self.paths.append(scope.get("path", ""))
            await inner(scope, receive, send)

        self.socket = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self.socket.getsockname()[1]
        self.server = server_of(app)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        until = time.monotonic() + 20
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.005)
        assert self.server.started

    def close(self, *, at_once: bool = False) -> None:
        """at_once: connections are cut, as when the process is killed."""
        self.server.should_exit, self.server.force_exit = True, at_once
        if at_once:
            for connection in list(self.server.server_state.connections):
                connection.loop.call_soon_threadsafe(connection.transport.abort)
        self.thread.join(20)
        self.socket.close()
        assert not self.thread.is_alive()
