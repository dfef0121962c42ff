"""What a step took: seconds by phase, calls, rates, peak memory, the same on every rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from grpo_mm.config.run_config import RunConfig
from grpo_mm.ledger.entries import Ledger
from grpo_mm.processes.clock import Clock
from grpo_mm.processes.compiled import compiled_counts, told
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.peak_memory import peak_gib
from grpo_mm.processes.roles import ROLES, idle_shares
from grpo_mm.processes.services import begun_again
from grpo_mm.training.forecast import beside_measured

log = logging.getLogger(__name__)

AMOUNTS = ("pictures", "prompt_tokens", "answer_tokens")
"""What is sampled in a step: logged, and also as a rate over the entire step."""


class StepTimes:
    """Around each step of a run, by the clock that phases write to."""

    def __init__(self, config: RunConfig, processes: Processes, clock: Clock, *, forecast: Ledger | None) -> None:
        self.config, self.processes, self.clock, self.forecast = config, processes, clock, forecast
        self._graphs: dict[str, float] = {}

    def around(self, step: Callable[[], dict[str, float]], *, totals: dict[str, Any]) -> dict[str, float]:
        """What `step` logs, with what it took; adds that to `totals`: {"seconds": {"train"}, "calls": by name}, of the whole run."""
        self.clock.take_all()
        row = step()
        taken = self.clock.take_all()
        totals["seconds"]["train"] += taken.wall
        own = taken.counts, peak_gib(self.processes.device), idle_shares(taken.busy, taken.wall)
        ranks, peaks, idle = (list(each) for each in zip(*self.processes.gather(own), strict=True))
        row |= _summed(ranks, totals["calls"])
        row |= {f"time/{name}_seconds": s for name, s in sorted(taken.main.items())} | {"time/rest_seconds": taken.rest}
        row |= {f"time/beside/{name}_seconds": s for name, s in sorted(taken.beside.items())}
        row |= {f"time/idle_{role}_frac": sum(rank[role] for rank in idle) / len(idle) for role in ROLES}
        row |= {
            f"time/{name}_per_second": row[f"rollout/{name}"] / taken.wall
            for name in AMOUNTS
            if f"rollout/{name}" in row
        }
        row |= {f"time/{name}_gib": max(peak[name] for peak in peaks) for name in peaks[0]}
        row |= beside_measured(self.forecast, row)
        row |= self._compiled()
        return row | begun_again() | {"time/step_seconds": taken.wall}

    def _compiled(self) -> dict[str, float]:
        """Graphs and graph breaks of the main process, where the policy is compiled; the log tells whenever there are more."""
        found = compiled_counts() if getattr(self.config.policy, "compile", False) else {}
        if found and found != self._graphs:
            log.info("%s", told(found))
        self._graphs = found
        return found


def _summed(ranks: list[Mapping[str, int]], calls: dict[str, int]) -> dict[str, float]:
    """Over ranks, "calls/NAME"; `calls` grows by them."""
    row: dict[str, float] = {}
    for name in sorted(set().union(*ranks)):
        row[f"calls/{name}"] = sum(rank.get(name, 0) for rank in ranks)
        calls[name] = calls.get(name, 0) + row[f"calls/{name}"]
    return row
