"""Seconds of a training step beside busy processes, with OpenMP threads that wait passively (the package's default) and that spin.

python docs/scripts/waiting.py 2 6          # busy processes, rounds

Two runs take turns step by step; while one computes, the other is stopped (SIGSTOP), so that its threads do not spin against it.
"""

import os
import signal
import subprocess
import sys
import tempfile
from statistics import median

SETTINGS = [
    "steps=999", "threads=2", "prompts_per_step=2", "group_size=12", "eval_prompts={}", "checkpoints.every=0", "samples_every=0", "watch={}",
]  # fmt: skip


def work(folder: str) -> None:
    """A run that tells the seconds of each step, and waits for a line before the next."""
    import grpo_mm

    def told(step: int, row: dict[str, float]) -> None:
        print(row["time/step_seconds"], flush=True)
        sys.stdin.readline()

    grpo_mm.train("quickstart/flow.yaml", [*SETTINGS, f"runs_dir={folder}"], on_step=told)


def measure(busy: int, rounds: int, folder: str) -> dict[str, list[float]]:
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    policies = {"passive": {}, "active": {"OMP_WAIT_POLICY": "ACTIVE"}}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    runs = {
        name: subprocess.Popen(
            [sys.executable, __file__, "work", f"{folder}/{name}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=plain | policy,
        )
        for name, policy in policies.items()
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    try:
        for run in runs.values():
            run.stdout.readline()  # the first step warms up
            run.send_signal(signal.SIGSTOP)
        for _ in range(rounds):
            for name, run in runs.items():
                run.send_signal(signal.SIGCONT)
                run.stdin.write("\n")
                run.stdin.flush()
                seconds[name].append(float(run.stdout.readline()))
                run.send_signal(signal.SIGSTOP)
    finally:
        for process in (*runs.values(), *others):
            process.kill()
    return seconds


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as home:
            found = {name: median(s) for name, s in measure(int(sys.argv[1]), int(sys.argv[2]), home).items()}
        print(
            ", ".join(f"{name} {s:.2f} s" for name, s in found.items()),
            f"ratio {found['active'] / found['passive']:.2f}",
        )
