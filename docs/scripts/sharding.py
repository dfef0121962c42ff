"""Bytes and processor time of a step with weights whole and cut, for docs/sharding.md; the first process prints.

torchrun --nproc_per_node 2 docs/scripts/sharding.py [CONFIG] [KEY=VALUE …]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from grpo_mm.config.run_config import read
from grpo_mm.processes.distributed import Distributed, Processes
from grpo_mm.training.learner import Learner

CONFIG = Path(__file__).parents[2] / "configs/bench/prefix_cpu.yaml"
STEPS = 3


def mib(tensors: Iterable[Tensor]) -> float:
    """Of what this process holds."""
    local = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in local) / 2**20


def measured(kind: str, config: str | Path, overrides: list[str]) -> str:
    """A row of the table."""
    settings = replace(read(config, overrides), samples_every=0, eval_prompts={}, distributed=Distributed(kind=kind))
    processes = Processes(device=settings.device, distributed=settings.distributed)
    with TemporaryDirectory() as folder:
        learner = Learner(settings, processes, samples=Path(folder))
        learner.step(0)
        found = []
        for step in range(1, STEPS + 1):
            began = time.process_time()
            learner.step(step)
            found.append(time.process_time() - began)
    tensors, _ = learner.checkpoint()
    held = [tensors["weights"], tensors["optimizer"], learner.policy.snapshots.state()]
    network = learner.policy.shards.network if kind == "sharded" else getattr(learner.policy, "model", None)
    network = learner.policy.network if network is None else network
    each = [f"{mib(part.values()):.1f}" for part in held]
    return f"| {kind} | {mib(network.parameters()):.1f} | {' | '.join(each)} | {statistics.median(found):.2f} |"


def main() -> None:
    config, overrides = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else (CONFIG, [])
    rows = [measured(kind, config, overrides) for kind in ("replicated", "sharded")]
    if Processes(device="cpu").is_main:
        print(
            "| weights | network, MiB | trained, MiB | moments, MiB | copies, MiB | processor s a step |\n| --- |"
            + " --- |" * 5
        )
        print("\n".join(rows))


if __name__ == "__main__":
    main()
