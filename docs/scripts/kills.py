"""Kills parts of launched runs at random moments, and writes what came of it into docs/launch.md.

    .venv/bin/python docs/scripts/kills.py [KILLS_OF_EACH]

Runs of a toy policy with two trainers on two nodes of a Ray cluster on this machine (`ray.cluster_utils`), a scorer on a third and one
node to spare. A trainer and the scorer are killed with SIGKILL, a node with all that runs there. Trainers and scorers are
forked from a process that has imported everything, so that a run takes seconds; they are processes of their own all the same.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / room) for room in ("", "helpers", "launch"))]
os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path[:4])}

from forked import Forks  # noqa: E402
from launches import launched  # noqa: E402
from nodes import Nodes  # noqa: E402
from spelling import write_speller  # noqa: E402
from tiny_runs import record, weights  # noqa: E402

from grpo_mm.config.run_config import read  # noqa: E402
from grpo_mm.launch.launcher import Launcher  # noqa: E402
from grpo_mm.launch.over_ray import OverRay  # noqa: E402
from grpo_mm.launch.places import Gone, asked  # noqa: E402
from grpo_mm.tools.serving.launch import job_of  # noqa: E402

STEPS = 12
SETTINGS = {
    "steps": STEPS,
    "rewards": {"right": {"use": {"kind": "spelling:SpelledRight", "seconds": 0.2}}},
    "launch": {"trainers": 2, "scorers": {"eyes": {"rewards": ["right"], "cpus": 0, "resources": {"home": 1}}}},
}
LONGEST_SECONDS = 4.0
"""After the first step, of the moment of a kill."""


@dataclass
class Outcome:
    lost: bool
    starts: int
    restarts: int
    same: bool
    """Record and last weights are those of a run that nobody disturbed, bit for bit."""
    seconds: float


def main(kills: int) -> None:
    random.seed(0)
    nodes, forks = Nodes(), Forks()
    try:
        with tempfile.TemporaryDirectory(prefix="kills_") as folder:
            config = write_speller(Path(folder), SETTINGS)
            _, wanted = run(config, "undisturbed", nodes, forks, lambda launcher: None)
            rows = []
            for name, kill in (("scorer", kill_scorer), ("trainer", kill_trainer), ("node", lambda l: lose(l, nodes))):
                found: list[Outcome] = []
                while len(found) < kills:
                    hit, outcome = run(
                        config, f"{name}{len(found)}_{time.time():.0f}", nodes, forks, kill, wanted=wanted
                    )
                    found += [outcome] if hit else []  # else it had ended before
                    print(name, hit, outcome, flush=True)
                rows.append(line(name, found))
    finally:
        forks.close()
        nodes.cluster.shutdown()
    write(rows)


def run(
    config: Path,
    name: str,
    nodes: Nodes,
    forks: Forks,
    kill: Callable[[Launcher], None],
    *,
    wanted: Outcome | None = None,
) -> tuple[bool, Outcome]:
    """(whether it was killed before its end, what came of it)."""
    nodes.have(3)
    place, settings = OverRay(nodes.address), read(config, [f"name={name}"])
    killed = threading.Event()
    begun: list[threading.Timer] = []

    def strike(launcher: Launcher) -> None:
        kill(launcher)
        killed.set()

    def hear(launcher: Launcher, told: list[str]) -> None:
        if wanted is not None and not begun and told[-1].startswith("step 1/"):
            begun.append(threading.Timer(random.uniform(0, LONGEST_SECONDS), strike, [launcher]))
            begun[0].start()

    since = time.monotonic()
    code, told, launcher = launched(
        forks.quick(job_of(settings, config, [f"name={name}"], place=place)), place, during=hear
    )
    for timer in begun:
        timer.cancel()
    folder, other = Path(settings.folder), Path(settings.folder).parent / "undisturbed"
    same = code == 0 and own(folder) == own(other) and weights(folder, STEPS) == weights(other, STEPS)
    seconds = time.monotonic() - since
    if code:
        print("\n".join(told))
    return killed.is_set(), Outcome(code != 0, len(launcher.starts), launcher._services.restarts, same, seconds)


def own(folder: Path) -> list[dict[str, float]]:
    """The record without what counts calls of services, and memory."""
    leave = ("calls/remote_requests", "calls/remote_repeats", "calls/service_restarts", "launch/starts")
    return [{k: v for k, v in row.items() if k not in leave and not k.startswith("memory/")} for row in record(folder)]


def kill_scorer(launcher: Launcher) -> None:
    os.kill(launcher._services._all[0].said["pid"], signal.SIGKILL)


def kill_trainer(launcher: Launcher) -> None:
    with suppress(Gone, ProcessLookupError):
        os.kill(asked(random.choice(launcher._workers), "pid"), signal.SIGKILL)


def lose(launcher: Launcher, nodes: Nodes) -> None:
    worker = random.choice(launcher._workers)
    nodes.lose(asked(worker, "about", launcher.job.folder, launcher.job.run)["node"])


def line(name: str, found: list[Outcome]) -> str:
    lost, other = sum(one.lost for one in found), sum(not one.same for one in found)
    again, back = sum(one.starts - 1 for one in found), sum(one.restarts for one in found)
    seconds = statistics.median(one.seconds for one in found)
    return f"| {name} | {len(found)} | {lost} | {other} | {again} | {back} | {seconds:.0f} |"


def write(rows: list[str]) -> None:
    page = ROOT / "docs/launch.md"
    head = "| killed | times | lost runs | other than undisturbed | begun again | services started again | median seconds of a run |"
    table = "\n".join(["<!-- kills -->", head, "| --- | --- | --- | --- | --- | --- | --- |", *rows, "<!-- /kills -->"])
    text = re.sub(r"<!-- kills -->.*<!-- /kills -->", lambda _: table, page.read_text(), flags=re.DOTALL)
    page.write_text(text)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
