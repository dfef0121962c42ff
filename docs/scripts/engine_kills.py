"""Kills the engine server of one launched run at random moments, again and again, and says what came of it.

    VENV/bin/python docs/scripts/engine_kills.py [KILLS] [--ray] [--undisturbed]     # of an environment with vLLM (`make test-engines`), and Ray

The video quickstart with a vLLM server on this machine. After each third step the server is killed (SIGKILL) a random time later, while it
draws or waits; it comes back at another address and is given the weights of the run. With --ray trainer, engine and scorer are on nodes of
their own of a Ray cluster on this machine, and every other time the engine's whole node is lost.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / room) for room in ("", "helpers", "launch"))]
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}

from launches import launched  # noqa: E402
from tiny_runs import record  # noqa: E402

from grpo_mm.config.run_config import read  # noqa: E402
from grpo_mm.launch.here import Here  # noqa: E402
from grpo_mm.launch.launcher import Launcher  # noqa: E402
from grpo_mm.tools.serving.launch import job_of  # noqa: E402

EVERY = 3
"""Steps between kills."""
LONGEST_SECONDS = 2.0
"""After a step, of the moment of a kill; a step takes about one."""
PLACED = (
    "launch={engines: {replicas: 1}, scorers: {eyes: {rewards: [format], cpus: 0, resources: {home: 1}}}, restarts: 3}"
)


def main(kills: int, *, over_ray: bool, disturbed: bool) -> None:
    random.seed(0)
    os.chdir(ROOT)
    config, hit, steps = ROOT / "configs/quickstart/video.yaml", [], EVERY * (kills + 1)
    nodes = None
    if over_ray:
        from nodes import Nodes

        from grpo_mm.launch.over_ray import OverRay

        nodes = Nodes()
        nodes.have(
            3 + kills // 2
        )  # the trainer's, the engine's, one to spare, those that are lost; the scorer is beside the head
    try:
        with tempfile.TemporaryDirectory(prefix="engine_kills_") as folder:
            settings = [
                "engine.generator={kind: vllm_server}", PLACED if over_ray else "launch.engines={replicas: 1}", "device=cpu", "threads=1",
                f"steps={steps}", f"runs_dir={folder}", "name=run", "evaluation.limit=4",
            ]  # fmt: skip
            place, begun = OverRay(nodes.address) if nodes else Here(), time.monotonic()
            launchers: list[Launcher] = []
            if disturbed:
                words = (Path(folder) / "run/metrics.jsonl", kills, launchers, hit, nodes)
                threading.Thread(target=_kill_again, args=words, daemon=True).start()

            job = job_of(read(config, settings), config, settings, place=place)
            code, told, launcher = launched(job, place, during=lambda launcher, told: launchers.append(launcher))
            rows = [row for row in record(Path(folder) / "run") if "reward/failed_frac" in row]
    finally:
        if nodes:
            nodes.cluster.shutdown()
    print("\n".join(told[-3:]))
    print(" ".join(f"{row['reward/iou/mean']:.4f}" for row in rows))
    print(
        f"{'over Ray, ' if over_ray else ''}kills {len(hit)} ({', '.join(hit)}), exit code {code}, starts of the run {len(launcher.starts)}, steps "
        f"{len(rows)} of {steps}, servers started again {launcher._services.restarts}, noticed by the run "
        f"{sum(row.get('calls/engine_restarts', 0) for row in rows):g}, rows asked again {sum(row.get('calls/engine_rows_again', 0) for row in rows):g}, "
        f"failed rows {sum(row['reward/failed_frac'] for row in rows):g}, largest gap between sampler and trainer "
        f"{max(row['policy/logprob_gap'] for row in rows):.1e}, {time.monotonic() - begun:.0f} s"
    )


def _kill_again(metrics: Path, kills: int, launchers: list[Launcher], hit: list[str], nodes) -> None:
    while len(hit) < kills:
        time.sleep(0.1)
        steps = metrics.read_text().count('"loss/total"') if metrics.exists() else 0
        if steps >= EVERY * (len(hit) + 1):
            time.sleep(random.uniform(0, LONGEST_SECONDS))
            said = launchers[-1]._services._all[-1].said
            if not said.get("url"):
                continue  # it is not back yet from the kill before
            if nodes is not None and len(hit) % 2:
                nodes.lose(said["node"])
                hit.append(f"the node after step {steps}")
                continue
            with suppress(ProcessLookupError):
                os.kill(said["pid"], signal.SIGKILL)
                hit.append(f"after step {steps}")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers[0] if numbers else 10, over_ray="--ray" in sys.argv, disturbed="--undisturbed" not in sys.argv)
