"""What runs on a machine for a launch: one object for each trainer and each service. Ordinary classes; Ray makes actors of them.

Arguments and answers are plain: numbers, texts, lists and dicts of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.launch.child import Child
from grpo_mm.processes.run_lock import holder_of
from grpo_mm.processes.services import FILE

DEVICES = "CUDA_VISIBLE_DEVICES"
OF_A_PLACE = ("OMP_NUM_THREADS",)
"""What Ray sets for its own processes, and torchrun would not: a run computes the same wherever it is placed."""
CHECKPOINT = re.compile(r"step_(\d+)")
HEALTH_SECONDS = 1.0
"""Between looks at a service."""
END_SECONDS = 5.0
"""For a service to end by itself, before it is killed."""
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before a service that died is started again: the first time, the second, …"""


class TrainerWorker:
    """Holds one training process: starts it, says where it is, and how it ended."""

    def __init__(self, *, host: str = "127.0.0.1", node: str = "here", devices: str | None = None) -> None:
        """host: the address by which other machines reach this one. node: its name. devices: which GPUs are for it, None: as
        the environment says."""
        self._host, self._node = host, node
        self._devices = os.environ.get(DEVICES, "") if devices is None else devices
        self._folder = Path(tempfile.gettempdir()) / f"grpo_mm_launch_{uuid.uuid4().hex}"
        self._child: Child | None = None

    def about(self, folder: str, run: str) -> dict[str, Any]:
        """The machine, and the newest checkpoint that it sees of the run (-1: none).

        Raises:
            UserError: it has no such working folder.
        """
        if not os.path.isdir(folder):
            raise UserError(
                f"node {self._node} ({self._host}) has no folder {folder}: config and data have to lie at the same place on all nodes."
            )
        return {
            "node": self._node,
            "host": self._host,
            "devices": self._devices,
            "checkpoint": newest_checkpoint(run),
        }

    def free_port(self) -> int:
        """Of this machine, at this moment."""
        return free_port(self._host)

    def told(self, services: Mapping[str, Any]) -> None:
        """Where services are (`processes.services`)."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._folder / "services.json", json.dumps(services))

    def begin(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> int:
        """Starts the training process; its number. A word {python} is the Python of this worker."""
        if self._child is not None:  # of a start that was given up: two of one rank would share the run
            self._child.end()
        environment = {**_surroundings(), **environment, FILE: str(self._folder / "services.json")}
        self._child = Child(_in_place(command), environment=environment, folder=folder)
        return self._child.pid

    def pid(self) -> int:
        """Of the training process; 0 before the first."""
        return 0 if self._child is None else self._child.pid

    def ended(self, seconds: float | None = None) -> int | None:
        """Waits for its end: exit code, or minus the signal; None: it still runs after so many seconds."""
        return None if self._child is None else self._child.wait(seconds)

    def said(self, after: int) -> tuple[int, list[str]]:
        """As `Child.said`."""
        return (after, []) if self._child is None else self._child.said(after)

    def send(self, number: int) -> None:
        """A signal for the training process."""
        if self._child is not None:
            self._child.send(number)

    def end(self) -> None:
        """Kills it if it still runs."""
        if self._child is not None:
            self._child.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait_until_free(self, run: str, seconds: float) -> None:
        """Until no process is in the run folder, such as one on a node that was given up.

        Raises:
            UserError: one still is after so many seconds.
        """
        until = time.monotonic() + seconds
        while (holder := holder_of(Path(run))) is not None:
            if time.monotonic() > until:
                raise UserError(
                    f"{run}: process {holder} of node {self._node} still trains there. Wait for it, or end it."
                )
            time.sleep(0.2)


class ServiceWorker:
    """Keeps one service running: a command that answers over HTTP, and is started again whenever it ends, at another port."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: str,
        *,
        health: str = "/health",
        token: str | None = None,
        host: str = "127.0.0.1",
        node: str = "here",
    ) -> None:
        """command: with {python}, {host} and {port} where these go. health: a path that answers 200 when it is up. token: for the
        header Authorization."""
        self._command, self._environment, self._folder = list(command), dict(environment), folder
        self._health, self._token, self._host, self._node = health, token, host, node
        self._url: str | None = None
        self._start, self._starts, self._pid = "", 0, 0
        self._failures: list[dict[str, Any]] = []
        self._over = threading.Event()
        self._child: Child | None = None
        threading.Thread(target=self._keep, name="grpo_mm-service", daemon=True).start()

    def where(self) -> dict[str, Any]:
        """url (None while it does not answer), start (another text after each start), its number of starts here, how earlier ones
        ended, its process."""
        return {
            "url": self._url, "start": self._start, "starts": self._starts, "node": self._node, "pid": self._pid,
            "failures": list(self._failures),
        }  # fmt: skip

    def said(self, after: int) -> tuple[int, list[str]]:
        """As `Child.said`, of the present start."""
        return (after, []) if self._child is None else self._child.said(after)

    def end(self, seconds: float = END_SECONDS) -> None:
        """Ends it for good."""
        self._over.set()
        if self._child is not None:
            self._child.end(seconds=seconds)

    def _keep(self) -> None:
        while not self._over.is_set():
            try:
                self._once()
            except OSError as error:  # no folder, no memory for another process
                self._note(None, [f"it cannot be started: {error}"])
            self._over.wait(PAUSES[min(len(self._failures), len(PAUSES)) - 1] if self._failures else 0)

    def _once(self) -> None:
        port = free_port(self._host)
        command = _in_place(self._command, host=self._host, port=port)
        child = Child(command, environment={**_surroundings(), **self._environment}, folder=self._folder)
        self._child, self._pid, self._starts = child, child.pid, self._starts + 1
        self._start, url = f"{time.time():.6f}", f"http://{self._host}:{port}"
        while child.wait(HEALTH_SECONDS if self._url else 0.2) is None and not self._over.is_set():
            if self._url is None and self._answers(url):
                self._url = url
        self._url = None
        if self._over.is_set():  # it may have been started while the one before was ended
            child.end(seconds=END_SECONDS)
        else:
            self._note(child.code, child.said()[1][-20:])

    def _note(self, code: int | None, said: Sequence[str]) -> None:
        self._failures = [*self._failures[-9:], {"code": code, "said": list(said), "start": self._start}]

    def _answers(self, url: str) -> bool:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(urllib.request.Request(url + self._health, headers=headers), timeout=2.0) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError, ValueError):
            return False


def newest_checkpoint(run: str) -> int:
    """The step of the newest checkpoint in a run folder; -1: there is none. They are put in place whole."""
    found = [-1]
    with suppress(OSError):
        found += [int(name[1]) for path in os.listdir(f"{run}/checkpoints") if (name := CHECKPOINT.fullmatch(path))]
    return max(found)


def free_port(host: str) -> int:
    """A port of this machine that nobody has at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.bind((host, 0))
        return int(tried.getsockname()[1])


def write_whole(path: Path, text: str) -> None:
    """Who reads it sees the old text or the new one."""
    aside = path.with_name(f".writing_{path.name}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _in_place(command: Sequence[str], **words: Any) -> list[str]:
    """Not by `str.format`: a command may hold braces of its own."""
    found = list(command)
    for name, value in {"python": sys.executable, **words}.items():
        found = [word.replace(f"{{{name}}}", str(value)) for word in found]
    return found


def _surroundings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OF_A_PLACE}
