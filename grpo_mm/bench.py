"""Seconds and memory by phase of whole training steps."""

from __future__ import annotations

import contextlib
import resource
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from grpo_mm import clock
from grpo_mm.distributed import Processes
from grpo_mm.errors import ConfigError
from grpo_mm.learner import Learner
from grpo_mm.run_config import Evaluation, read

NETWORK = ("rollout_network", "train_network", "ref_network")
"""Phases in which the policy's network runs; with encode, decode and reward they are the work that has to be done."""
WORK = (*NETWORK, "encode", "decode", "reward")


def bench(config: str | Path, overrides: Sequence[str] = (), *, steps: int = 5) -> dict[str, Any]:
    """Medians over `steps` training steps after one warm-up step.

    Returns seconds by phase, milliseconds per row, the share of time outside network, encoder, decoder and reward, network
    calls, and peak memory above what was resident before the first step.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps}; wanted at least 1.")
    settings = replace(read(config, overrides), samples_every=0, eval_prompts={}, evaluation=Evaluation(), trackers=())
    settings.check()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    processes = Processes(device=settings.device)
    with TemporaryDirectory() as folder:
        learner = Learner(settings, processes, samples=Path(folder))
        times = clock.use(clock.Clock(sync=True))
        resident = _start_peak_mib(processes.device)
        found, totals = [], []
        for step in range(steps + 1):
            times.take()
            with clock.phase("other"):
                learner.step(step)
            seconds, counts = times.take()
            if step > 0:
                found.append(seconds)
                totals.append(sum(seconds.values()))
    rows = settings.prompts_per_step * settings.group_size
    phases = {name: statistics.median(f.get(name, 0.0) for f in found) for name in sorted(set().union(*found))}
    total = statistics.median(totals)
    outside = statistics.median(1 - sum(f.get(n, 0.0) for n in WORK) / t for f, t in zip(found, totals, strict=True))
    return {
        "config": str(config),
        "device": _device_name(processes.device),
        "threads": torch.get_num_threads(),
        "steps": steps,
        "rows": rows,
        "seconds_per_step": total,
        "milliseconds_per_row": 1000 * total / rows,
        "seconds_by_phase": phases,
        "outside_share": outside,
        "milliseconds_per_row_outside": 1000 * outside * total / rows,
        "calls_per_step": counts,
        "peak_memory_mib": _peak_mib(processes.device) - resident,
        "resident_memory_mib": resident,
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    rows, total = result["rows"], result["seconds_per_step"]
    text = [
        f"{result['config']} on {result['device']}, {result['threads']} threads, {rows} rows a step, "
        f"median of {result['steps']} steps after a warm-up",
        f"{'phase':20s} {'seconds':>9s} {'ms/row':>9s} {'share':>7s}",
    ]
    for name, seconds in sorted(result["seconds_by_phase"].items(), key=lambda item: -item[1]):
        text.append(f"{name:20s} {seconds:9.3f} {1000 * seconds / rows:9.2f} {seconds / total:7.1%}")
    text += [
        f"{'whole step':20s} {total:9.3f} {result['milliseconds_per_row']:9.2f}",
        f"outside network, encoder, decoder and reward: {result['outside_share']:.1%} "
        f"({result['milliseconds_per_row_outside']:.2f} ms/row)",
        f"network calls a step: {', '.join(f'{k} {v}' for k, v in result['calls_per_step'].items())}",
        f"peak memory above the {result['resident_memory_mib']:.0f} MiB resident before: {result['peak_memory_mib']:.0f} MiB",
    ]
    return "\n".join(text)


def _start_peak_mib(device: torch.device) -> float:
    """What is resident now; from here on the peak counts anew, so that loading the model is not in it.

    On a GPU what torch has allocated, else the process's resident size, which Linux alone can count anew.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS") or _peak_mib(device)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _status_mib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status_mib(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), None)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
