"""Whether sampler and trainer of a config see and compute the same, and why a ratio is not 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from grpo_mm.config.run_config import RunConfig, read
from grpo_mm.errors import ConfigError
from grpo_mm.findings import Finding, as_table, first_difference
from grpo_mm.golden.comparing import lines
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream_seed
from grpo_mm.rollout.rows import plan_rows, seen_by
from grpo_mm.run.data import training_prompts

PROMPTS, SAMPLES = 3, 4


def doctor(config: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> list[Finding]:
    """Examines the policy of a config on a few of its training prompts; nothing is trained or written.

    Raises:
        ConfigError: the engine cannot be examined, or none of the prompts can be read.
    """
    settings = read(config, overrides, trust=trust)
    settings.check()
    return list(examination(settings))


def examination(settings: RunConfig) -> Iterator[Finding]:
    """As `doctor`, one finding after the other."""
    engine = settings.engine
    if not hasattr(engine, "examine"):
        raise ConfigError(
            f"the engine {type(engine).__name__} has no `examine`: sampler and trainer cannot be compared."
        )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    prompts = [prompt for source in training_prompts(settings).values() for prompt in source]
    some = [prompts[i] for i in torch.linspace(0, len(prompts) - 1, min(PROMPTS, len(prompts))).long().tolist()]
    device = Processes(device=settings.device, matmul=settings.matmul).device
    torch.manual_seed(stream_seed(settings.seed, "init"))
    policy = settings.policy.load(device)
    for name, wanted in (("ref", settings.needs_reference), ("ema", settings.ema), ("sampling", settings.sampling)):
        if wanted:
            policy.snapshots.take(name)
    group = settings.group_size if getattr(engine, "whole_groups", False) else min(SAMPLES, settings.group_size)
    rows, _ = plan_rows(seen_by(policy, some), group_size=group, parts=1)
    yield from engine.examine(policy, rows, seed=settings.seed)


def scorers(config: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> list[str]:
    """Of each reward with golden pictures, whether its scores are recorded; `grpo-mm golden` asks them."""
    settings = read(config, overrides, trust=trust)
    return lines(settings.rewards | settings.watched_rewards)


def report(findings: Sequence[Finding]) -> tuple[str, bool]:
    """The table with a last line, and whether all is well."""
    first = first_difference(findings)
    if first is None:
        return f"{as_table(findings)}\n\nSampler and trainer see and compute the same.", True
    return f"{as_table(findings)}\n\nFirst difference: {first.name}. Usual cause: {first.cause}.", False
