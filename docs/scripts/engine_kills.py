"""Kills the engine server of one launched run at random moments, again and again, and says what came of it.

    VENV/bin/python docs/scripts/engine_kills.py [KILLS]     # of an environment with vLLM, see `make test-engines`

The video quickstart with a vLLM server on this machine. After each third step the server is killed (SIGKILL) a random time later, while it
draws or waits; it comes back at another address and is given the weights of the run.
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
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

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


def main(kills: int) -> None:
    random.seed(0)
    os.chdir(ROOT)
    config, hit, steps = ROOT / "configs/quickstart/video.yaml", [], EVERY * (kills + 1)
    with tempfile.TemporaryDirectory(prefix="engine_kills_") as folder:
        settings = [
            "engine.generator={kind: vllm_server}", "launch.engines={replicas: 1}", "device=cpu", "threads=1", f"steps={steps}",
            f"runs_dir={folder}", "name=run", "evaluation.limit=4",
        ]  # fmt: skip
        place, begun = Here(), time.monotonic()

        launchers: list[Launcher] = []
        watcher = threading.Thread(
            target=_kill_again, args=(Path(folder) / "run/metrics.jsonl", kills, launchers, hit), daemon=True
        )
        watcher.start()

        job = job_of(read(config, settings), config, settings, place=place)
        code, told, launcher = launched(job, place, during=lambda launcher, told: launchers.append(launcher))
        rows = [row for row in record(Path(folder) / "run") if "reward/failed_frac" in row]
    print("\n".join(told[-3:]))
    print(
        f"kills {len(hit)} (after steps {hit}), exit code {code}, starts of the run {len(launcher.starts)}, steps {len(rows)} of {steps}, servers "
        f"started again {launcher._services.restarts}, noticed by the run {sum(row.get('calls/engine_restarts', 0) for row in rows):g}, rows asked "
        f"again {sum(row.get('calls/engine_rows_again', 0) for row in rows):g}, failed rows {sum(row['reward/failed_frac'] for row in rows):g}, largest "
        f"gap between sampler and trainer {max(row['policy/logprob_gap'] for row in rows):.1e}, {time.monotonic() - begun:.0f} s"
    )


def _kill_again(metrics: Path, kills: int, launchers: list[Launcher], hit: list[int]) -> None:
    while len(hit) < kills:
        time.sleep(0.1)
        steps = metrics.read_text().count('"loss/total"') if metrics.exists() else 0
        if steps >= EVERY * (len(hit) + 1):
            time.sleep(random.uniform(0, LONGEST_SECONDS))
            pid = launchers[-1]._services._all[0].said["pid"]
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                hit.append(steps)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
