"""A run's ledger: the config asks its policy, which knows its networks."""

from __future__ import annotations

from dataclasses import replace

from grpo_mm.config.run_config import RunConfig
from grpo_mm.errors import ConfigError
from grpo_mm.ledger.entries import Ledger, Plan
from grpo_mm.ledger.timed import timed
from grpo_mm.ledger.words import Asked, memory_lines, time_lines


def cost_lines(config: RunConfig, asked: Asked) -> list[str]:
    """Does it fit, how long, what does it cost; what cannot be told is said in a line of its own."""
    seconds, where = timed(config.folder, asked.bench)
    asked = replace(asked, measured_seconds=seconds, measured_on=where)
    plan = plan_of(config, devices=asked.devices)
    try:
        ledger = ledger_of(config, plan)
    except ConfigError as error:
        return [f"memory: {error}"]
    if ledger is None:
        return [f"memory: a policy of kind {type(config.policy).__name__} keeps no ledger, so its size is unknown here"]
    networks = [name for name, scorer in config.rewards.items() if hasattr(scorer.use, "to")]
    said = [f"networks of rewards are in no line: {', '.join(networks)}"] if networks else []
    cpu = plan.kind == "cpu"
    return [*memory_lines(ledger, cpu=cpu), *said, *([] if cpu else time_lines(ledger, asked, steps=config.steps))]


def ledger_of(config: RunConfig, plan: Plan) -> Ledger | None:
    """None for a policy that keeps none.

    Raises:
        ConfigError: its checkpoint is neither on this disk nor of a known size.
    """
    write = getattr(config.engine, "ledger", None)
    return None if write is None else write(config.policy, plan)


def plan_of(config: RunConfig, *, devices: int = 1) -> Plan:
    """The share of one of `devices` processes, all of which hold everything."""
    reads = frozenset(getattr(config.engine, "snapshots", ()))
    kept = {
        "ref": config.needs_reference or "ref" in reads,
        "ema": config.ema is not None,
        "sampling": config.sampling is not None,
    }
    cpu = config.device == "cpu"
    prompts = -(-config.prompts_per_step // devices)
    calls = {name: -(-number * prompts // config.prompts_per_step) for name, number in config.network_calls().items()}
    return Plan(
        prompts=prompts, group_size=config.group_size, updates=config.updates.count, calls=calls, needs=config.needs,
        snapshots=tuple(name for name, wanted in kept.items() if wanted), kind="cpu" if cpu else "cuda",
        foreach=not cpu, media=_media(config), eval_rows=bool(config.eval_prompts) * prompts * config.group_size,
    )  # fmt: skip


def _media(config: RunConfig) -> str:
    """By where the readers of the prompts live; a reader of a user's own is taken to bring what its name says."""
    where = " ".join(f"{type(s.use).__module__}.{type(s.use).__name__}".lower() for s in config.prompts.values())
    for word, kind in (
        ("video", "video"),
        ("clip", "video"),
        ("spatial", "picture"),
        ("image", "picture"),
        ("picture", "picture"),
    ):
        if word in where:
            return kind
    return "" if ".chat." in where else "picture"
