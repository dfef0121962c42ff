"""Contradictions of a config, found when it is read."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from grpo_mm.advantages.credit import check_stages
from grpo_mm.config.settings import Settings
from grpo_mm.config.sizes import check_sizes
from grpo_mm.errors import ConfigError
from grpo_mm.looking.watch import check_metric, metric_of
from grpo_mm.objectives.truncated import Truncated
from grpo_mm.outside import shown
from grpo_mm.processes.shards import check_torch
from grpo_mm.registry import kind_of
from grpo_mm.rollout.outputs.takes import check_takes
from grpo_mm.rollout.prompt_stream import phases
from grpo_mm.rollout.scoring import check_isolated, is_apart
from grpo_mm.rollout.table import KEYS, PER_ACTION, STALENESS, Table
from grpo_mm.types import BASELINE, BEHAVIOUR, WHOLE_ROW, is_relative
from grpo_mm.weights.stateful import stateful_parts

_OF_THE_TABLE = {*KEYS, "prompt_id", "local_row", "failed", "rank"}
"""Columns that every table has, and no objective sees."""


def check_settings(config: Settings, world: int) -> None:
    """Raises ConfigError for settings that contradict each other; looks at no file and no machine."""
    _check_numbers(config)
    check_sizes(config)
    config.engine.check(config.policy, group_size=config.group_size, training_steps=config.steps)
    _check_sizes(config, config.distributed.ranks(world))
    if not config.rewards or not config.prompts or not config.objective:
        raise ConfigError("a run needs at least one entry each under `prompts`, `rewards` and `objective`.")
    if all(scorer.weight == 0 for scorer in config.rewards.values()):
        raise ConfigError("every reward has weight 0; put rewards that are only logged under `watch`.")
    _check_advantage(config)
    provides = config.policy.provides & config.engine.provides
    missing = sorted(config.needs - provides)
    if missing:
        raise ConfigError(
            f"the objective needs {', '.join(missing)}, which the policy does not provide; "
            f"with this engine it provides {', '.join(sorted(provides))}. Choose another objective, policy or engine setting."
        )
    if "velocity_shift_ema" in config.needs and config.ema is None:
        raise ConfigError("the objective stays close to averaged weights, but the run keeps none: give `ema`.")
    if "ema" in getattr(config.engine, "snapshots", ()) and config.ema is None:
        raise ConfigError("the engine asks averaged weights, but the run keeps none: give `ema`.")
    if config.reference_dtype == "bfloat16" and (
        getattr(config.policy, "dtype", None) != "bfloat16" or getattr(config.policy, "lora", None) is not None
    ):
        raise ConfigError(
            "reference_dtype = bfloat16 is for a policy that computes in bfloat16 with all weights trained; else the reference would be "
            "another policy than the one that training begins with. Leave it out."
        )
    if config.reference_reset is not None and not config.needs_reference:
        raise ConfigError("reference_reset: no term of the objective uses a reference; add {kind: kl, …}.")
    _check_metric(config)
    check_benchmarks(config)
    _check_sources(config)
    _check_watch(config)
    _check_relative(config, world)
    _check_isolated(config)
    made = getattr(config.policy, "makes", None)
    check_takes(config.rewards, made, place="rewards")
    check_takes(config.watched_rewards, made, place="watch")
    _check_distributed(config, world)
    _check_ahead(config)
    config.launch.check([*config.rewards, *config.watched_rewards], asks_servers=_asks_servers(config))


def check_benchmarks(config: Settings) -> None:
    """Raises ConfigError for benchmarks without held-out prompts, of unknown sources, or with a name that is taken."""
    sources = sorted(config.eval_prompts)
    taken = {*config.rewards, *config.watch, *sources, "image", "score", "diversity"}
    for name, benchmark in config.evaluation.benchmarks.items():
        where = f"evaluation.benchmarks.{name}"
        if not sources:
            raise ConfigError(f"{where} needs held-out prompts, but there are no `eval_prompts`.")
        if name in taken:
            raise ConfigError(f"{where}: eval/{name}/… is taken by a reward, a watch, a source or the core; rename it.")
        unknown = sorted(set(getattr(benchmark, "sources", None) or ()) - set(sources))
        if unknown:
            raise ConfigError(f"{where}: no source {unknown[0]!r} in eval_prompts; there are: {', '.join(sources)}.")


def _check_isolated(config: Settings) -> None:
    scorers = config.rewards | config.watched_rewards
    check_isolated(scorers)
    for name, scorer in scorers.items():
        learning = [path for path, _ in stateful_parts(scorer.use)] if is_apart(scorer) else []
        if learning:
            raise ConfigError(
                f"{name}: isolate: true or an environment, but the reward learns with the run{f' ({learning[0]})' if learning[0] else ''}, and a process "
                "of its own would learn apart. Leave both out."
            )


def _check_metric(config: Settings) -> None:
    """A collector that looks at one reward names it, or there is only one."""
    metric = getattr(config.collector, "metric", None)
    if (
        hasattr(config.collector, "metric")
        and metric not in config.rewards
        and (metric is not None or len(config.rewards) > 1)
    ):
        raise ConfigError(
            f"collector {kind_of('strategy', config.collector)}: metric = {metric}; there are {', '.join(sorted(config.rewards))}. "
            "Name one."
        )


def _check_numbers(config: Settings) -> None:
    evaluation, saving = config.evaluation, config.checkpoints
    for key, value, least in (
        ("steps", config.steps, 1), ("prompts_per_step", config.prompts_per_step, 1), ("group_size", config.group_size, 1),
        ("updates.count", config.updates.count, 1), ("updates.passes", config.updates.passes, 1), ("samples_every", config.samples_every, 0), ("threads", config.threads, 1),
        ("evaluation.every", evaluation.every, 0), ("evaluation.limit", evaluation.limit, 1),
        ("evaluation.samples_per_prompt", evaluation.samples_per_prompt, 1), ("evaluation.show", evaluation.show, 0),
        ("evaluation.patience", evaluation.patience, 1), ("checkpoints.every", saving.every, 0),
        ("checkpoints.keep_last", saving.keep_last, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise ConfigError(f"{key} = {value}; wanted at least {least}.")
    for name, scorer in (config.rewards | config.watch).items():
        if scorer.timeout_seconds is not None and scorer.timeout_seconds <= 0:
            raise ConfigError(
                f"{name}: timeout_seconds = {scorer.timeout_seconds}; wanted above 0, or null for no limit."
            )
    if evaluation.patience is not None and not evaluation.every:
        raise ConfigError(
            f"evaluation.patience = {evaluation.patience}, but with evaluation.every = 0 there is none to count."
        )
    if evaluation.every and not config.eval_prompts:
        raise ConfigError(f"evaluation.every = {evaluation.every}, but there are no `eval_prompts` to evaluate on.")


def _check_sizes(config: Settings, world: int) -> None:
    if (
        not config.name
        or os.sep in config.name
        or config.name.startswith(".")
        or not config.name.isprintable()
        or len(config.name) > 100
    ):
        raise ConfigError(f"name is {shown(config.name)}; wanted a plain folder name of at most 100 characters.")
    parts = config.updates.count if config.updates.by == "group" else 1
    if config.prompts_per_step % parts:
        raise ConfigError(
            f"prompts_per_step = {config.prompts_per_step} does not divide into updates.count = {parts} parts of whole "
            f"groups. Use a multiple of {parts}, or updates.by=action."
        )
    if config.updates.by == "action" and config.updates.count > 1 and getattr(config.engine, "train_within", None):
        raise ConfigError(
            "updates.by=action deals out all noisy steps, of which engine.train_within leaves some untrained: some updates would "
            "train nothing. Use updates.by=group."
        )
    split = config.updates.by == "action" and config.updates.count > 1
    whole = [term for term in config.objective if any(part.couples in ("row", "group") for part in _parts(term))]
    if split and whole:
        raise ConfigError(
            f"updates.by=action trains a part of a row's actions at a time, but the objective {kind_of('objective', whole[0])} needs "
            "whole rows. Use updates.by=group."
        )
    if config.updates.by == "action" and config.engine.actions() < config.updates.count:
        raise ConfigError(
            f"updates.count = {config.updates.count} by action, but a row trains {config.engine.actions()} actions. "
            f"Use at most {config.engine.actions()}."
        )
    _check_ragged(config, world)
    rows = config.prompts_per_step // parts * config.group_size
    if rows % world:
        raise ConfigError(
            f"{config.prompts_per_step // parts} prompts × group_size {config.group_size} = {rows} rows per update do not "
            f"divide over {world} processes. Make prompts_per_step × group_size a multiple of {world * parts}."
        )


def _asks_servers(config: Settings) -> bool:
    generator = getattr(config.engine, "generator", None)
    return generator is not None and kind_of("generator", generator) == "vllm_server"


def _check_distributed(config: Settings, world: int) -> None:
    """Weights that are cut over processes need a policy that knows how, and whole weights in the network that is compiled."""
    config.distributed.check(world)
    name = kind_of("policy", config.policy)
    if config.distributed.sequence > 1 and "sequence" not in inspect.signature(config.policy.load).parameters:
        raise ConfigError(
            f"distributed.sequence = {config.distributed.sequence}, but the policy {name} cannot cut rows: its `load` takes no "
            "`sequence`. Leave it out."
        )
    if config.distributed.kind != "sharded":
        return
    if "shard" not in inspect.signature(config.policy.load).parameters:
        raise ConfigError(
            f"distributed.kind = sharded, but the policy {name} keeps its weights whole: its `load` takes no `shard`. "
            "Use distributed.kind=replicated."
        )
    if getattr(config.policy, "compile", False):
        raise ConfigError(
            "policy.compile = true and distributed.kind = sharded do not go together: weights come and go under the compiled "
            "network. Leave one of them out."
        )
    if getattr(config.policy, "quantize", None) is not None:
        raise ConfigError(
            f"policy.quantize = {config.policy.quantize} and distributed.kind = sharded do not go together: quantized weights are not "
            "cut. Leave one of them out."
        )
    if config.distributed.gather == "forward":
        if not getattr(config.policy, "blocks_in_order", False):
            raise ConfigError(
                f"distributed.gather = forward is for networks that go through all their blocks in one order in each pass, which the "
                f"policy {name} does not say of its own. Use gather=phase."
            )
        if getattr(config.engine, "snapshots", ()):
            raise ConfigError(
                "distributed.gather = forward, but the engine puts copies of the weights in place between forwards. Use gather=phase."
            )
    check_torch(
        reduced=getattr(config.policy, "dtype", None) == "bfloat16" and getattr(config.policy, "lora", None) is None
    )


def _check_ahead(config: Settings) -> None:
    """Rows that are a step old want a ratio that knows it."""
    if config.rollout_ahead not in (0, 1):
        raise ConfigError(f"rollout_ahead = {shown(config.rollout_ahead)}; wanted 0, or 1: one step.")
    if not config.rollout_ahead or config.old_logprobs_of != "update":
        return
    for term in config.objective:
        parts = list(_parts(term))
        reads = getattr(term, "reads_advantage", True) and "logprobs" in term.needs
        if reads and not any(isinstance(part, Truncated) for part in parts):
            name = kind_of("objective", term)
            raise ConfigError(
                f"rollout_ahead = 1 with old_logprobs = auto: the one update of a step takes its own log-probabilities for old ones, so every "
                f"ratio is 1, although the rows were drawn one step before. Correct that: objective {{kind: truncated, of: {{kind: {name}}}}}, "
                "or old_logprobs = rollout, or recompute."
            )


def _check_ragged(config: Settings, world: int) -> None:
    """A collector that gives prompts different numbers of samples."""
    if not getattr(config.collector, "ragged", False):
        return
    if getattr(config.engine, "whole_groups", False):
        raise ConfigError(
            "the collector gives prompts different numbers of samples, but the engine needs whole groups (one tree for a whole "
            "group, or a demonstration in each). Use engine.tree={kind: chains}, no engine.demonstrate, or another collector."
        )
    first, most = config.collector.first, config.collector.most
    if not first <= config.group_size <= most:
        raise ConfigError(
            f"group_size = {config.group_size} samples of a prompt on average, but the collector gives each prompt at least "
            f"{first} and at most {most}. Change collector.first, collector.most or group_size."
        )
    if config.prompts_per_step * config.collector.first < world:
        raise ConfigError(
            f"prompts_per_step = {config.prompts_per_step} × collector.first = {config.collector.first} samples leave some of "
            f"{world} processes without any. Raise one of them."
        )


def _check_relative(config: Settings, world: int) -> None:
    relative = [name for name, scorer in config.rewards.items() if is_relative(scorer.use)]
    parts = config.updates.count if config.updates.by == "group" else 1
    if relative and (config.prompts_per_step // parts) % world:
        raise ConfigError(
            f"the reward {relative[0]!r} compares whole groups, but {config.prompts_per_step // parts} prompts an update do "
            f"not divide over {world} processes. Make prompts_per_step a multiple of {world * parts}."
        )
    if relative and (config.engine.table_columns(config.group_size)["action"] == BASELINE).any():
        raise ConfigError(
            f"the reward {relative[0]!r} compares samples with each other, and its scores before and after a step are those of "
            "different sets: there is no gain to take. Use an absolute reward with engine.tree={kind: clean_images}."
        )
    absolute = [s for s in config.rewards.values() if s.weight and not is_relative(s.use)]
    watched = [s for s in config.watched_rewards.values() if not is_relative(s.use)]
    if config.eval_prompts and not absolute and not watched:
        raise ConfigError(
            f"the rewards ({', '.join(relative)}) compare samples of a group, which says nothing of progress on held-out "
            "prompts. Put an absolute reward under `watch`, or leave out `eval_prompts`."
        )
    planned = config.planned_reward_calls()
    if config.max_reward_calls is not None and planned > config.max_reward_calls:
        raise ConfigError(
            f"a step plans {planned} reward calls, more than max_reward_calls = {config.max_reward_calls}: "
            f"{len(config.rewards)} reward(s), {config.engine.pictures(config.group_size)} pictures for each of "
            f"{config.prompts_per_step} prompts. Score fewer steps or granularities, or raise the budget."
        )


def _parts(term: Any) -> Iterator[Any]:
    """A term of the objective, and those that stand inside of it (`of`)."""
    while hasattr(term, "couples"):
        yield term
        term = getattr(term, "of", None)


def _check_terms(config: Settings) -> None:
    for term in (part for whole in config.objective for part in _parts(whole)):
        weight = getattr(term, "weight", 1.0)
        if weight <= 0:
            raise ConfigError(
                f"objective {kind_of('objective', term)}: weight = {weight:g}; wanted above 0, or leave the term out."
            )
        aggregate = getattr(term, "aggregate", None)
        if isinstance(aggregate, (int, float)) and aggregate <= 0:
            raise ConfigError(
                f"objective {kind_of('objective', term)}: aggregate = {aggregate}; wanted a name, or a number above 0."
            )
    if not any(getattr(term, "reads_advantage", True) for term in config.objective):
        raise ConfigError("no term of the objective reads the advantage, so the rewards would teach nothing.")


def _check_advantage(config: Settings) -> None:
    parts = (*config.advantage, config.collector)
    smallest = max(getattr(part, "min_group_size", 1) for part in parts)
    ragged = getattr(config.collector, "ragged", False)
    least = config.collector.first if ragged else config.group_size
    if least < smallest:
        raise ConfigError(
            f"{'collector.first' if ragged else 'group_size'} = {least}, but the advantage compares samples "
            f"within a group and needs at least {smallest}."
        )
    _check_terms(config)
    table = _rehearsal_table(config)
    for stage in config.advantage:
        absent = sorted(getattr(stage, "columns", frozenset()) - set(table.columns))
        if absent:
            also = f" (and {', '.join(absent[1:])})" if absent[1:] else ""
            raise ConfigError(
                f"the advantage stage {kind_of('advantage', stage)} needs the column {absent[0]!r}{also}, which the rollout does not "
                f"declare; it has {', '.join(sorted(table.columns))}. {getattr(stage, 'why', '')} Another engine may declare it, or "
                "choose another method."
            )
        # What was known of prompts before the run says nothing of a rehearsal, and its file may be gone when a run goes on.
        rehearsed = replace(stage, probes=None) if getattr(stage, "probes", None) else stage
        table = _checked(rehearsed(table), stage)
    check_stages(table)
    (value_M,) = table.values.values()
    taught = torch.isfinite(value_M) & (value_M != 0)
    if not taught.any() and PER_ACTION not in table.columns:
        raise ConfigError(
            "the advantage stages leave nothing to learn from: with any rewards every advantage is 0 or left out. Look at the "
            "order of the stages, at their `key` (a comparison set needs two rows or more), and at the weights of the rewards."
        )
    read = frozenset().union(*(getattr(term, "columns", frozenset()) for term in config.objective))
    unread = sorted(frozenset().union(*(getattr(stage, "makes", frozenset()) for stage in config.advantage)) - read)
    if unread:
        raise ConfigError(
            f"an advantage stage makes the column {unread[0]!r}, but no term of the objective reads it: add "
            f"{{kind: kl, gate: {unread[0]}, …}}."
        )
    known = (set(table.columns) - _OF_THE_TABLE) | {BEHAVIOUR}
    for term in config.objective:
        absent = sorted(getattr(term, "columns", frozenset()) - known)
        if absent:
            raise ConfigError(
                f"the objective reads the column {absent[0]!r}, which no advantage stage makes and the rollout does not declare."
            )
        one_advantage = getattr(term, "one_advantage_per_row", term.couples == "row")
        own = table.columns.get(PER_ACTION)
        differs = own is not None and bool(own.nan_to_num().any())
        if one_advantage and (differs or (table.columns["action"] != WHOLE_ROW).any()):
            raise ConfigError(
                "the rollout credits single actions, but the objective has one ratio for a whole row, which would mix "
                "them. Use ratio: action."
            )


def _checked(table: Any, stage: Any) -> Table:
    """What a stage made of the rehearsal, if it is a table of as many numbers."""
    name = kind_of("advantage", stage)
    if not isinstance(table, Table):
        raise ConfigError(f"the advantage stage {name} returned a {type(table).__name__}; wanted a Table.")
    for value, value_M in table.values.items():
        if not torch.is_tensor(value_M) or value_M.shape != (len(table),) or not value_M.is_floating_point():
            raise ConfigError(f"the advantage stage {name} made of {value!r} no float tensor of {len(table)} entries.")
    return table


def _rehearsal_table(config: Settings) -> Table:
    """A made-up table of two groups, so that missing columns and wrong orders show when the config is read."""
    group = config.engine.table_columns(config.group_size)
    size = group["sample"].numel()
    columns = {name: torch.cat([column, column]) for name, column in group.items()}
    columns["prompt"] = torch.arange(2 * size) // size
    columns["prompt_id"] = columns["prompt"]
    columns["local_row"] = columns["prompt"] * config.group_size + columns["sample"]
    columns["failed"] = torch.zeros(2 * size, dtype=torch.bool)
    columns["rank"] = torch.zeros(2 * size, dtype=torch.int64)
    columns |= {name: torch.full((2 * size,), 0.5) for name in getattr(config.collector, "makes", frozenset())}
    columns |= {STALENESS: torch.zeros(2 * size, dtype=torch.int64)} if config.rollout_ahead else {}
    drawn = torch.Generator().manual_seed(0)
    # Half of the rows are wrong: what looks for right and wrong rows finds both.
    wrong = (columns["prompt"] + columns["sample"]) % 2 == 0
    values = {
        name: torch.where(wrong, 0.0, 0.5 + 0.5 * torch.rand(2 * size, dtype=torch.float64, generator=drawn))
        for name in config.rewards
    }
    return Table(values=values, columns=columns, weights={name: s.weight for name, s in config.rewards.items()})


def _check_sources(config: Settings) -> None:
    known = set(config.prompts) | set(config.eval_prompts)
    for name, scorer in (config.rewards | config.watch).items():
        unknown = set(scorer.sources or ()) - known
        if unknown:
            raise ConfigError(
                f"reward {name!r} applies to source {unknown.pop()!r}; there are: {', '.join(sorted(known))}."
            )
    for name in config.prompts:
        if not any(s.sources is None or name in s.sources for s in config.rewards.values()):
            raise ConfigError(f"no reward applies to the prompts of source {name!r}.")
    twice = sorted(set(config.rewards) & set(config.watched_rewards))
    if twice:
        raise ConfigError(f"{twice} stands under both `rewards` and `watch`.")
    for name, source in config.prompts.items():
        if source.from_step < 0 or (source.until_step is not None and source.until_step <= source.from_step):
            raise ConfigError(
                f"prompts.{name}: from_step = {source.from_step}, until_step = {source.until_step}; wanted steps from 0 on, and an "
                "end after the start."
            )
    spans = {n: (s.from_step, s.until_step) for n, s in config.prompts.items() if s.weight > 0}
    idle = [start for start, names in phases(spans) if not names and start < config.steps]
    if spans and idle:
        raise ConfigError(f"no prompt source is drawn from step {idle[0]} on; look at from_step and until_step.")
    for name, source in config.eval_prompts.items():
        if source.from_step or source.until_step is not None:
            raise ConfigError(f"eval_prompts.{name}: from_step and until_step are for `prompts`; evaluation asks all.")
    total = sum(source.weight for source in config.prompts.values())
    if any(source.weight < 0 for source in config.prompts.values()) or total <= 0:
        raise ConfigError("the weights of the prompt sources must be 0 or more, and not all 0.")


def _check_watch(config: Settings) -> None:
    for name, entry in config.watch.items():
        if not entry.has_band:
            continue
        check_metric(
            name,
            metric_of(name, entry),
            rewards=config.rewards,
            watched=config.watch,
            evaluates=bool(config.eval_prompts),
            held_out=[*config.evaluation.benchmarks, *config.eval_prompts],
        )
        if metric_of(name, entry).startswith("eval/") and entry.action != "warn" and not config.evaluation.every:
            raise ConfigError(
                f"watch.{name}: action = {entry.action} comes too late, as {entry.metric} is only measured before and "
                "after training. Set evaluation.every."
            )
        if entry.action == "rollback" and not config.checkpoints.every:
            raise ConfigError(
                f"watch.{name}: action = rollback, but with checkpoints.every = 0 there is nothing to go back to. "
                "Set checkpoints.every."
            )
