"""A run's ledger: the config asks its policy, which knows its networks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from grpo_mm.config.run_config import RunConfig
from grpo_mm.errors import ConfigError
from grpo_mm.ledger.entries import GIB, Entry, Ledger, Phase, Plan, Spread
from grpo_mm.ledger.fit import close, refusal
from grpo_mm.ledger.timed import timed
from grpo_mm.ledger.words import Asked, memory_lines, time_lines
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.reward_use import needs_device
from grpo_mm.rollout.scoring import is_apart

APART = "in a process of its own"
"""How the owner of memory ends that another process of this run holds on the same device."""
OF_A_PROCESS = GIB // 2
"""What CUDA takes of a GPU for one more process, about."""
log = logging.getLogger(__name__)


def cost_lines(config: RunConfig, asked: Asked) -> list[str]:
    """Does it fit, how long, what does it cost; what cannot be told is said in a line of its own."""
    seconds, where = timed(config.folder, asked.bench)
    cut = asked.sharded or config.distributed.kind == "sharded"
    asked = replace(
        asked,
        measured_seconds=seconds,
        measured_on=where,
        sharded=cut and asked.devices > 1,
        gather=config.distributed.gather,
    )
    plan = plan_of(config, devices=asked.devices)
    try:
        ledger = ledger_of(config, plan)
    except ConfigError as error:
        return [f"memory: {error}"]
    if ledger is None:
        return [f"memory: a policy of kind {type(config.policy).__name__} keeps no ledger, so its size is unknown here"]
    if asked.sharded and not ledger.can_shard:
        return ["memory: weights that are quantized (policy.quantize) are not cut over GPUs: leave out one of the two"]
    cpu = plan.kind == "cpu"
    return [*memory_lines(ledger, asked, cpu=cpu), *([] if cpu else time_lines(ledger, asked, steps=config.steps))]


def forecast(config: RunConfig, processes: Processes) -> Ledger | None:
    """What each process of a run on GPUs is going to hold, its weights cut or whole; None where nothing can be foretold.

    A run that cannot fit is refused here, before anything is loaded.

    Raises:
        ConfigError: the least that it needs is more than what is free on the device.
    """
    if processes.device.type != "cuda" or not config.preflight:
        return None
    free, _ = torch.cuda.mem_get_info(processes.device)
    try:
        ledger = ledger_of(config, plan_of(config, devices=processes.number))
    except ConfigError as error:
        log.info("memory is not foretold: %s", error)
        return None
    if ledger is None:
        return None
    cut = processes.number > 1 and config.distributed.kind == "sharded"
    spread = Spread(processes.number, sharded=cut, gather=config.distributed.gather)
    if (why := refusal(ledger, free, spread=spread)) is not None:
        raise ConfigError(f"{config.name}: {why}")
    here = ledger.on(spread)
    if (why := close(here, free)) is not None:
        log.warning("%s", why)
    return here


def beside_measured(ledger: Ledger | None, row: Mapping[str, float]) -> dict[str, float]:
    """What was foretold, to stand in the record beside the measured peak; {} where either is not known."""
    if ledger is None or "time/device_peak_gib" not in row:
        return {}
    others = sum(entry.bytes for entry in ledger.resident if entry.owner.endswith(APART))
    return {"time/device_forecast_gib": (ledger.peak - others) / GIB}


def ledger_of(config: RunConfig, plan: Plan) -> Ledger | None:
    """None for a policy that keeps none.

    Raises:
        ConfigError: its checkpoint is neither on this disk nor of a known size.
    """
    write = getattr(config.engine, "ledger", None)
    if write is None:
        return None
    return _with_rewards(write(config.policy, plan), config)


def _with_rewards(ledger: Ledger, config: RunConfig) -> Ledger:
    """With the networks of rewards and watches whose size is known; the others are named."""
    place = "host" if config.offload_rewards else "device"
    entries, unknown = [], []
    for name, use in {**_uses(config.rewards), **_uses(config.watch)}.items():
        size = use.network_bytes() if hasattr(use, "network_bytes") else None
        if size is not None:
            entries.append(Entry(f"reward network {name}", size, getattr(use, "dtype", "float32"), place=place))
        elif hasattr(use, "to"):
            unknown.append(name)
    shared = {name: scorer for name, scorer in (config.rewards | config.watch).items() if _on_ours(scorer, config)}
    for name, scorer in shared.items():
        size = scorer.use.network_bytes() if hasattr(scorer.use, "network_bytes") else None
        entries.append(Entry(f"CUDA of reward {name}, {APART}", scorer.workers * OF_A_PROCESS))
        if size is None:
            unknown.append(name)
        else:
            dtype = getattr(scorer.use, "dtype", "float32")
            entries.append(Entry(f"reward network {name}, {APART}", scorer.workers * size, dtype, place=place))
    said = (f"what these rewards load is in no line: {', '.join(unknown)}",) if unknown else ()
    if shared:
        meanwhile = "" if config.offload_rewards else ", also while weights are updated"
        said += (
            f"on the run's GPU {APART}{meanwhile}: {', '.join(shared)}; {_place(config, next(iter(shared)))}.device sets another",
        )
    if entries:
        said += ("reward networks are counted by their weights, without what scoring takes",)
    scoring = tuple(
        replace(entry, owner=f"{entry.owner}, moved in", place="device") for entry in entries if entry.place == "host"
    )
    phases = (Phase("scoring", scoring, "rewards in bfloat16"),) if scoring and config.offload_rewards else ()
    return replace(
        ledger, resident=(*ledger.resident, *entries), phases=(*ledger.phases, *phases), said=(*ledger.said, *said)
    )


def _on_ours(scorer: Any, config: RunConfig) -> bool:
    """Whether it is in a process of its own that holds a network, or what it likes, on the run's GPU."""
    apart = is_apart(scorer) and scorer.device is None and config.device != "cpu"
    return apart and hasattr(scorer.use, "to") and needs_device(scorer.use)


def _place(config: RunConfig, name: str) -> str:
    return f"rewards.{name}" if name in config.rewards else f"watch.{name}"


def _uses(scorers: Mapping[str, Any]) -> dict[str, Any]:
    """Those in this process."""
    return {name: scorer.use for name, scorer in scorers.items() if not is_apart(scorer)}


def plan_of(config: RunConfig, *, devices: int = 1, kind: Literal["cuda", "cpu"] | None = None) -> Plan:
    """The share of one of `devices` processes.

    `kind`: of device; None: as the config says, a GPU where it says "auto".
    """
    reads = frozenset(getattr(config.engine, "snapshots", ()))
    kept = {
        "ref": config.needs_reference or "ref" in reads,
        "ema": config.ema is not None,
        "sampling": config.sampling is not None,
        "ahead": bool(config.rollout_ahead),
    }
    kind = kind or ("cpu" if config.device == "cpu" else "cuda")
    prompts = -(-config.prompts_per_step // config.distributed.ranks(devices))
    calls = {name: -(-number * prompts // config.prompts_per_step) for name, number in config.network_calls().items()}
    return Plan(
        prompts=prompts, group_size=config.group_size, updates=config.updates.count, calls=calls, needs=config.needs,
        snapshots=tuple(name for name, wanted in kept.items() if wanted), kind=kind,
        foreach=kind == "cuda", fused=config.optim.fused and config.optim.moments == "float32", media=_media(config), eval_rows=bool(config.eval_prompts) * prompts * config.group_size,
        devices=devices, sequence=config.distributed.sequence if devices > 1 else 1, offload_rewards=config.offload_rewards,
        copies_checkpoints=config.checkpoints.in_background, reference_dtype=config.reference_dtype, optimiser_bytes=2 if config.optim.moments == "8bit" else 8,
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
