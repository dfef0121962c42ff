"""Launches of pretended trainers and services, for tests."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpo_mm.launch.launcher import Job, Launcher
from grpo_mm.launch.places import Place, Wanted
from grpo_mm.launch.services import ToServe
from grpo_mm.launch.settings import Launch

HERE = Path(__file__).parent
SERVICE = """
import http.server
import sys


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        well = self.headers.get("Authorization") == "Bearer open"
        self.send_response(200 if well else 401)
        self.end_headers()

    def log_message(self, *_):
        pass


http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Answers).serve_forever()
"""


def job(
    run: Path,
    how: str = "well",
    *,
    steps: int = 4,
    services: Mapping[str, Any] = {},
    trainer: Wanted | None = None,
    **launch: Any,
) -> Job:  # noqa: B006
    """services: name -> its Python program."""
    served = [
        ToServe(
            name, Wanted(0.0, resources={}), {"command": [sys.executable, "-c", code, "{host}", "{port}"], "environment": {}, "folder": str(run.parent), "token": "open"},
            rewards=("right",),
        )
        for name, code in services.items()
    ]  # fmt: skip
    return Job(
        run=str(run), folder=str(run.parent), first=["--fresh"], environment={"OMP_NUM_THREADS": "1"}, launch=Launch(**launch),
        command=[sys.executable, str(HERE / "pretended_trainer.py"), str(run), str(steps), how],
        trainer=trainer or Wanted(0.0), services=served,
    )  # fmt: skip


def launched(
    job: Job, place: Place, *, during: Callable[[Launcher, list[str]], None] | None = None
) -> tuple[int, list[str], Launcher]:
    """Exit code, what was told, the launcher. during: called whenever something is told."""
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if during is not None:
            during(launcher, told)

    launcher = Launcher(job, place, told=tell, stop_asked=lambda: False)
    return launcher.launch(), told, launcher


def starts(run: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What each start of a pretended trainer found."""
    return [json.loads(line) for line in (run / f"starts_{rank}.jsonl").read_text().splitlines()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while is_running(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
