"""What a run is: one YAML file, checked for contradictions before any model is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from grpo_mm.advantages import Clamp, GroupNorm, WeightedSum
from grpo_mm.advantages.credit import check_stages
from grpo_mm.collectors.sample_and_score import SampleAndScore
from grpo_mm.config import Role, build, dump, read_yaml
from grpo_mm.errors import ConfigError
from grpo_mm.objectives import ClippedRatio
from grpo_mm.optim import Optim
from grpo_mm.snapshots import Ema, ReferenceReset, SamplingPolicy
from grpo_mm.table import Table
from grpo_mm.types import WHOLE_ROW, is_relative
from grpo_mm.watch import Watched, check_metric, metric_of


@dataclass(frozen=True)
class Source:
    """A named set of prompts and its share of the mixture."""

    use: Annotated[Any, Role("prompts")]
    weight: float = 1.0


@dataclass(frozen=True)
class Scorer:
    """A named reward: its weight, the prompt sources it applies to (None: all), and its time limit."""

    use: Annotated[Any, Role("reward")]
    weight: float = 1.0
    sources: tuple[str, ...] | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Updates:
    """How a rollout is spent: `count` optimiser updates on disjoint parts, split by groups or by actions."""

    by: Literal["group", "action"] = "group"
    count: int = 1


@dataclass(frozen=True)
class Evaluation:
    """Held-out evaluation, deterministic: every `every` steps, and before and after training."""

    every: int = 0
    """0: only before and after."""
    limit: int | None = None
    """At most so many prompts of each source."""
    samples_per_prompt: int = 1
    seed: int = 0
    """Of the fixed noise; apart from the run's seed, so that runs are compared on the same pictures."""
    show: int = 16
    """Pictures kept of each evaluation."""
    patience: int | None = None
    """Stop after so many evaluations without a better held-out score."""


@dataclass(frozen=True)
class Checkpoints:
    """Every `every` steps and at the end; the last `keep_last` and the best one stay."""

    every: int = 50
    keep_last: int = 2
    keep_best: bool = True


@dataclass(frozen=True)
class RunConfig:
    """One run. What a file omits is the default here."""

    name: str
    policy: Annotated[Any, Role("policy")]
    engine: Annotated[Any, Role("engine")]
    prompts: dict[str, Source]
    steps: int
    prompts_per_step: int
    group_size: int
    rewards: dict[str, Scorer] = field(default_factory=dict)
    """At least one; those given to `grpo_mm.train` in Python take their place."""
    seed: int = 0
    updates: Updates = field(default_factory=Updates)
    collector: Annotated[Any, Role("strategy")] = field(default_factory=SampleAndScore)
    advantage: tuple[Annotated[Any, Role("advantage")], ...] = field(
        default_factory=lambda: (GroupNorm(), WeightedSum(), Clamp())
    )
    objective: tuple[Annotated[Any, Role("objective")], ...] = field(default_factory=lambda: (ClippedRatio(),))
    old_logprobs: Literal["rollout", "recompute"] = "rollout"
    """recompute: one pass in training shapes before the first update; for low precision, where batch shape matters."""
    optim: Optim = field(default_factory=Optim)
    ema: Ema | None = None
    """Averaged weights; evaluation and the product use them."""
    sampling: SamplingPolicy | None = None
    """Rollouts come from a slow copy of the weights; None: from the weights."""
    reference_reset: ReferenceReset | None = None
    """When the reference becomes the present policy; None: never."""
    eval_prompts: dict[str, Source] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)
    watch: dict[str, Watched] = field(default_factory=dict)
    """Rewards that are logged and not optimised, and bands of metrics with what to do when they are left."""
    offload_rewards: bool = False
    """Network rewards leave the device while they are not asked."""
    max_reward_calls: int | None = None
    """Budget: rewards × pictures of a step, comparisons of a judge included; a config that plans more is refused."""
    samples_every: int = 10
    """Steps between sheets of rollout pictures; 0: none."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Which of several GPUs: CUDA_VISIBLE_DEVICES, or the launcher."""
    threads: int | None = None
    """CPU threads of torch; fix it where runs must agree bit for bit."""
    runs_dir: str = "runs"

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def watched_rewards(self) -> dict[str, Watched]:
        """The entries of `watch` that score; the others only read metrics."""
        return {name: entry for name, entry in self.watch.items() if entry.use is not None}

    @property
    def needs(self) -> frozenset[str]:
        """Names of all values that the objective reads."""
        return frozenset().union(*(term.needs for term in self.objective))

    @property
    def needs_reference(self) -> bool:
        return any("ref" in name.split("_") for name in self.needs)

    def check(self, world: int = 1) -> None:
        """Raises ConfigError for anything that cannot run, before any model is loaded."""
        self.check_settings(world)
        self.policy.check()
        for part in (*self.prompts.values(), *self.eval_prompts.values(), *self.rewards.values(), *self.watch.values()):
            if hasattr(part.use, "check"):
                part.use.check()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device is {self.device!r}, but torch sees no CUDA device. Use device=cpu or device=auto."
            )

    def check_settings(self, world: int = 1) -> None:
        """The part of `check` that looks at no file and no machine: contradictions of the settings themselves."""
        self._check_numbers()
        self._check_sizes(world)
        if not self.rewards or not self.prompts or not self.objective:
            raise ConfigError("a run needs at least one entry each under `prompts`, `rewards` and `objective`.")
        self.engine.check(self.policy, group_size=self.group_size)
        self._check_advantage()
        provides = self.policy.provides & self.engine.provides
        missing = sorted(self.needs - provides)
        if missing:
            raise ConfigError(
                f"the objective needs {', '.join(missing)}, which the policy does not provide; "
                f"with this engine it provides {', '.join(sorted(provides))}. Choose another objective, policy or engine setting."
            )
        if "velocity_shift_ema" in self.needs and self.ema is None:
            raise ConfigError("the objective stays close to averaged weights, but the run keeps none: give `ema`.")
        if self.reference_reset is not None and not self.needs_reference:
            raise ConfigError("reference_reset: no term of the objective uses a reference; add {kind: kl, …}.")
        if all(scorer.weight == 0 for scorer in self.rewards.values()):
            raise ConfigError("every reward has weight 0; put rewards that are only logged under `watch`.")
        self._check_sources()
        self._check_watch()
        self._check_relative(world)

    def _check_numbers(self) -> None:
        evaluation, saving = self.evaluation, self.checkpoints
        for key, value, least in (
            ("steps", self.steps, 1), ("prompts_per_step", self.prompts_per_step, 1), ("group_size", self.group_size, 1),
            ("updates.count", self.updates.count, 1), ("samples_every", self.samples_every, 0), ("threads", self.threads, 1),
            ("evaluation.every", evaluation.every, 0), ("evaluation.limit", evaluation.limit, 1),
            ("evaluation.samples_per_prompt", evaluation.samples_per_prompt, 1), ("evaluation.show", evaluation.show, 0),
            ("evaluation.patience", evaluation.patience, 1), ("checkpoints.every", saving.every, 0),
            ("checkpoints.keep_last", saving.keep_last, 1),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ConfigError(f"{key} = {value}; wanted at least {least}.")
        for name, scorer in (self.rewards | self.watch).items():
            if scorer.timeout_seconds is not None and scorer.timeout_seconds <= 0:
                raise ConfigError(
                    f"{name}: timeout_seconds = {scorer.timeout_seconds}; wanted above 0, or null for no limit."
                )
        if evaluation.patience is not None and not evaluation.every:
            raise ConfigError(
                f"evaluation.patience = {evaluation.patience}, but with evaluation.every = 0 there is none to count."
            )
        if evaluation.every and not self.eval_prompts:
            raise ConfigError(f"evaluation.every = {evaluation.every}, but there are no `eval_prompts` to evaluate on.")

    def _check_sizes(self, world: int) -> None:
        if (
            not self.name
            or os.sep in self.name
            or self.name.startswith(".")
            or not self.name.isprintable()
            or len(self.name) > 100
        ):
            raise ConfigError(f"name is {self.name!r}; wanted a plain folder name of at most 100 characters.")
        parts = self.updates.count if self.updates.by == "group" else 1
        if self.prompts_per_step % parts:
            raise ConfigError(
                f"prompts_per_step = {self.prompts_per_step} does not divide into updates.count = {parts} parts of whole "
                f"groups. Use a multiple of {parts}, or updates.by=action."
            )
        if self.updates.by == "action" and self.engine.actions() < self.updates.count:
            raise ConfigError(
                f"updates.count = {self.updates.count} by action, but a row trains {self.engine.actions()} actions. "
                f"Use at most {self.engine.actions()}."
            )
        rows = self.prompts_per_step // parts * self.group_size
        if rows % world:
            raise ConfigError(
                f"{self.prompts_per_step // parts} prompts × group_size {self.group_size} = {rows} rows per update do not "
                f"divide over {world} processes. Make prompts_per_step × group_size a multiple of {world * parts}."
            )

    def network_calls(self, step: int = 0) -> dict[str, int]:
        """Planned network calls of training step `step`; a run counts what it makes as calls/NAME_calls.

        rollout; train: forward and backward; value: forward passes without gradient before it; ref, old, ema: of these
        policies.
        """
        calls = self.engine.network_calls(
            self.policy, prompts=self.prompts_per_step, group_size=self.group_size, needs=self.needs, step=step, seed=self.seed
        )  # fmt: skip
        recompute = self.old_logprobs == "recompute" and "logprobs" in self.needs
        # Objectives that couple more than a forward holds are computed in two passes.
        passes = recompute + any(term.couples != self.policy.unit for term in self.objective)
        if passes:
            calls["value"] = passes * calls["train"]
        if recompute and "mean_shift_old" in self.needs:
            calls["old"] = calls["train"]
        return calls

    def planned_reward_calls(self) -> int:
        """Rewards × distinct pictures of a step; a reward that compares pictures says how many calls a group takes."""
        pictures = self.engine.pictures(self.group_size)
        each = [
            scorer.use.planned_calls(pictures) if hasattr(scorer.use, "planned_calls") else pictures
            for scorer in self.rewards.values()
        ]
        return self.prompts_per_step * sum(each)

    def _check_relative(self, world: int) -> None:
        relative = [name for name, scorer in self.rewards.items() if is_relative(scorer.use)]
        parts = self.updates.count if self.updates.by == "group" else 1
        if relative and (self.prompts_per_step // parts) % world:
            raise ConfigError(
                f"the reward {relative[0]!r} compares whole groups, but {self.prompts_per_step // parts} prompts an update do "
                f"not divide over {world} processes. Make prompts_per_step a multiple of {world * parts}."
            )
        absolute = [s for s in self.rewards.values() if s.weight and not is_relative(s.use)]
        watched = [s for s in self.watched_rewards.values() if not is_relative(s.use)]
        if self.eval_prompts and not absolute and not watched:
            raise ConfigError(
                f"the rewards ({', '.join(relative)}) compare samples of a group, which says nothing of progress on held-out "
                "prompts. Put an absolute reward under `watch`, or leave out `eval_prompts`."
            )
        planned = self.planned_reward_calls()
        if self.max_reward_calls is not None and planned > self.max_reward_calls:
            raise ConfigError(
                f"a step plans {planned} reward calls, more than max_reward_calls = {self.max_reward_calls}: "
                f"{len(self.rewards)} reward(s), {self.engine.pictures(self.group_size)} pictures for each of "
                f"{self.prompts_per_step} prompts. Score fewer steps or granularities, or raise the budget."
            )

    def _check_advantage(self) -> None:
        smallest = max((getattr(stage, "min_group_size", 1) for stage in self.advantage), default=1)
        if self.group_size < smallest:
            raise ConfigError(
                f"group_size = {self.group_size}, but the advantage compares samples within a group and needs at least "
                f"{smallest}."
            )
        table = before = self._rehearsal_table()
        for stage in self.advantage:
            table = stage(table)
        check_stages(table)
        made = {name for name in table.columns if name not in before.columns}
        for term in self.objective:
            absent = sorted(getattr(term, "columns", frozenset()) - made)
            if absent:
                raise ConfigError(f"the objective reads the column {absent[0]!r}, which no advantage stage makes.")
            if term.couples == "row" and (table.columns["action"] != WHOLE_ROW).any():
                raise ConfigError(
                    "the rollout credits single actions, but the objective has one ratio for a whole row, which would mix "
                    "them. Use ratio: action."
                )

    def _rehearsal_table(self) -> Table:
        """A made-up table of two groups, so that missing columns and wrong orders show when the config is read."""
        group = self.engine.table_columns(self.group_size)
        size = group["sample"].numel()
        columns = {name: torch.cat([column, column]) for name, column in group.items()}
        columns["prompt"] = torch.arange(2 * size) // size
        columns["local_row"] = columns["prompt"] * self.group_size + columns["sample"]
        columns["failed"] = torch.zeros(2 * size, dtype=torch.bool)
        columns["rank"] = torch.zeros(2 * size, dtype=torch.int64)
        values = {name: torch.linspace(0, 1, 2 * size, dtype=torch.float64) for name in self.rewards}
        return Table(values=values, columns=columns, weights={name: s.weight for name, s in self.rewards.items()})

    def _check_sources(self) -> None:
        known = set(self.prompts) | set(self.eval_prompts)
        for name, scorer in (self.rewards | self.watch).items():
            unknown = set(scorer.sources or ()) - known
            if unknown:
                raise ConfigError(
                    f"reward {name!r} applies to source {unknown.pop()!r}; there are: {', '.join(sorted(known))}."
                )
        for name in self.prompts:
            if not any(s.sources is None or name in s.sources for s in self.rewards.values()):
                raise ConfigError(f"no reward applies to the prompts of source {name!r}.")
        twice = sorted(set(self.rewards) & set(self.watched_rewards))
        if twice:
            raise ConfigError(f"{twice} stands under both `rewards` and `watch`.")
        total = sum(source.weight for source in self.prompts.values())
        if any(source.weight < 0 for source in self.prompts.values()) or total <= 0:
            raise ConfigError("the weights of the prompt sources must be 0 or more, and not all 0.")

    def _check_watch(self) -> None:
        for name, entry in self.watch.items():
            if not entry.has_band:
                continue
            check_metric(
                name,
                metric_of(name, entry),
                rewards=self.rewards,
                watched=self.watch,
                evaluates=bool(self.eval_prompts),
            )
            if metric_of(name, entry).startswith("eval/") and entry.action != "warn" and not self.evaluation.every:
                raise ConfigError(
                    f"watch.{name}: action = {entry.action} comes too late, as {entry.metric} is only measured before and "
                    "after training. Set evaluation.every."
                )
            if entry.action == "rollback" and not self.checkpoints.every:
                raise ConfigError(
                    f"watch.{name}: action = rollback, but with checkpoints.every = 0 there is nothing to go back to. "
                    "Set checkpoints.every."
                )


def read(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a file and its overrides describe; `check` it before use."""
    try:
        return build(RunConfig, read_yaml(path, overrides))
    except ConfigError as error:
        raise ConfigError(
            str(error) if str(error).startswith((str(path), "no config file")) else f"{path}: {error}"
        ) from error


def plain(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, defaults included."""
    return dump(config)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys at which two plain configs differ."""
    found = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}: {left!r} there, {right!r} here")
    return found
