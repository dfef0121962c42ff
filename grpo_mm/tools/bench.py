"""Seconds and memory by phase of whole training steps."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from grpo_mm.config.run_config import Evaluation, read
from grpo_mm.errors import ConfigError
from grpo_mm.processes import clock
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.learner import Learner

NETWORK = ("tower_network", "prefill_network", "rollout_network", "train_network", "ref_network", "ema_network")
"""Phases in which the policy's network runs (tower: over pictures and clips; prefill: over
the prompts of texts that are sampled); with encode, decode and reward they are the work that has to be done."""
WORK = (*NETWORK, "encode", "decode", "reward")


def bench(
    config: str | Path, overrides: Sequence[str] = (), *, steps: int = 5, vs: Sequence[str] = (), trust: bool = False
) -> dict[str, Any]:
    """Medians over `steps` training steps after one warm-up step.

    `vs`: further overrides that make a second variant of the run. The two take turns, step by step, in this process; the
    result then has the second under "vs", and first over second under "ratio".

    Returns seconds by phase, milliseconds per row, the share of time outside network, encoder, decoder and reward, network
    calls, and peak memory above what was resident before a step.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps}; wanted at least 1.")
    variants = [_Variant(config, overrides, trust)]
    if vs:
        variants.append(_Variant(config, [*overrides, *vs], trust))
    for step in range(steps + 1):
        for variant in variants:
            variant.step(step)
    results = [variant.result(str(config)) for variant in variants]
    if not vs:
        return results[0]
    keys = ("seconds_per_step", "peak_memory_mib")
    ratio = {key: results[0][key] / results[1][key] if results[1][key] else None for key in keys}
    one, other = (result["seconds_by_phase"] for result in results)
    ratio |= {name: one[name] / other[name] for name in NETWORK if one.get(name) and other.get(name)}
    return results[0] | {"vs": results[1] | {"overrides": list(vs)}, "ratio": ratio}


class _Variant:
    """One config under measurement. The first step warms up and does not count."""

    def __init__(self, config: str | Path, overrides: Sequence[str], trust: bool) -> None:
        settings = replace(
            read(config, overrides, trust=trust), samples_every=0, eval_prompts={}, evaluation=Evaluation(), trackers=()
        )
        settings.check()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.settings, self.processes = (
            settings,
            Processes(device=settings.device, matmul=settings.matmul, distributed=settings.distributed),
        )
        with TemporaryDirectory() as folder:
            self.learner = Learner(settings, self.processes, samples=Path(folder))
        self.found: list[dict[str, float]] = []
        self.peaks: list[float] = []
        self.resident = 0.0
        self.counts: dict[str, int] = {}

    def step(self, number: int) -> None:
        times = clock.use(clock.Clock(sync=True))
        self.resident = _start_peak_mib(self.processes.device)
        with clock.phase("other"):
            self.learner.step(number)
        seconds, self.counts = times.take()
        if number > 0:
            self.found.append(seconds)
            self.peaks.append(_peak_mib(self.processes.device) - self.resident)

    def result(self, name: str) -> dict[str, Any]:
        found, settings = self.found, self.settings
        totals = [sum(f.values()) for f in found]
        rows = settings.prompts_per_step * settings.group_size
        total = statistics.median(totals)
        outside = statistics.median(
            1 - sum(f.get(n, 0.0) for n in WORK) / t for f, t in zip(found, totals, strict=True)
        )
        return {
            "config": name,
            "device": _device_name(self.processes.device),
            "threads": torch.get_num_threads(),
            "steps": len(found),
            "rows": rows,
            "seconds_per_step": total,
            "milliseconds_per_row": 1000 * total / rows,
            "seconds_by_phase": {
                name: statistics.median(f.get(name, 0.0) for f in found) for name in sorted(set().union(*found))
            },
            "outside_share": outside,
            "milliseconds_per_row_outside": 1000 * outside * total / rows,
            "calls_per_step": self.counts,
            "peak_memory_mib": statistics.median(self.peaks),
            "resident_memory_mib": self.resident,
        }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    if "vs" in result:
        alone = {key: value for key, value in result.items() if key not in ("vs", "ratio")}
        words = ", ".join(
            f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in result["ratio"].items()
        )
        return f"{table(alone)}\n\nagainst {' '.join(result['vs']['overrides'])}\n{table(result['vs'])}\n\nfirst over second: {words}"
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
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier steps have freed would hide what this one takes
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
