"""Commands of Python that begin at once: forked from a process that has imported everything, and otherwise as if they had been started.

`Forks().command(words)` is a command; what it runs takes over its output, environment and folder, gets its signals, ends with it however
it is ended, and ends it the same way.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_mm.launch.launcher import Job

PRELOADED = (
    "torch._dynamo",
    "accelerate",
    "grpo_mm.cli",
    "grpo_mm.entry",
    "grpo_mm.tools.serving.serve",
    "uvicorn",
    "fastapi",
    "httpx2",
)
LENGTH = 2**20


class Forks:
    """A server of forks; ends with `close`, and with this process."""

    def __init__(self) -> None:
        self.path = str(Path(tempfile.mkdtemp(prefix="forks_")) / "socket")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve", self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout.readline() == b"ready\n"

    def command(self, words: list[str]) -> list[str]:
        """For `python WORDS`: a script, or -m MODULE with a `main`."""
        return [sys.executable, "-S", __file__, "ask", self.path, *words]

    def quick(self, job: Job) -> Job:
        """The same job with such commands."""
        from dataclasses import replace

        services = []
        for one in job.services:
            settings = {**one.settings, "command": self.command(list(one.settings["command"][1:]))}
            services.append(replace(one, settings=settings))
        return replace(job, command=self.command(list(job.command[1:])), services=services)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def ask(path: str, words: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        said = json.dumps({"words": words, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
        socket.send_fds(server, [len(said).to_bytes(4, "big")], [1, 2])
        server.sendall(said)
        status = b""
        while len(status) < 4 and (more := server.recv(4 - len(status))):
            status += more
    code = int.from_bytes(status, "big", signed=True) if len(status) == 4 else -signal.SIGKILL
    if code < 0:
        os.kill(os.getpid(), -code)
        signal.pause()
    os._exit(code)


def serve(path: str) -> None:
    import importlib

    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            asked, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _between(asked)
            asked.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _between(asked: socket.socket) -> None:
    """Forks the one that works, and tells how it ended."""
    head, outputs, *_ = socket.recv_fds(asked, 4, 2)
    length, said = int.from_bytes(head, "big"), b""
    while len(said) < length:
        said += asked.recv(min(LENGTH, length - len(said)))
    child = os.fork()
    if child == 0:
        for to, there in zip((1, 2), outputs):
            os.dup2(there, to)
        _work(asked, **json.loads(said))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        asked.sendall(status.to_bytes(4, "big", signed=True))
    os._exit(0)


def _work(asked: socket.socket, *, words: list[str], environment: dict[str, str], folder: str) -> None:
    import importlib
    import runpy
    import traceback

    def obey() -> None:
        while said := asked.recv(1):
            os.kill(os.getpid(), said[0])
        os.kill(os.getpid(), signal.SIGKILL)  # who asked is gone

    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[:0] = [*environment.get("PYTHONPATH", "").split(os.pathsep), folder]
        threading.Thread(target=obey, daemon=True).start()
        module = words[1] if words[0] == "-m" else None
        sys.argv = words[1:] if module else words
        importlib.import_module(module).main() if module else runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    {"serve": lambda path: serve(path), "ask": lambda path, *words: ask(path, list(words))}[sys.argv[1]](*sys.argv[2:])
