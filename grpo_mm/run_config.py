"""What a run is: one YAML file, checked for contradictions before any model is loaded."""

from __future__ import annotations

import logging
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from grpo_mm.advantages import Clamp, GroupNorm, WeightedSum
from grpo_mm.collectors.sample_and_score import SampleAndScore
from grpo_mm.config import Role, build, convert, dump, read_yaml
from grpo_mm.errors import ConfigError
from grpo_mm.groups import group_ids
from grpo_mm.methods import preset
from grpo_mm.objectives import ClippedRatio
from grpo_mm.optim import Optim
from grpo_mm.run_checks import check_settings
from grpo_mm.snapshots import Ema, ReferenceReset, SamplingPolicy
from grpo_mm.types import ORDER
from grpo_mm.watch import Watched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A named set of prompts, its share of the mixture, and the steps in which it is drawn."""

    use: Annotated[Any, Role("prompts")]
    weight: float = 1.0
    from_step: int = 0
    until_step: int | None = None
    """Steps [from_step, until_step), counted from 0: a curriculum by phases. None: to the end."""


@dataclass(frozen=True)
class Scorer:
    """A named reward: its weight, the prompt sources it applies to (None: all), and its time limit."""

    use: Annotated[Any, Role("reward")]
    weight: float = 1.0
    sources: tuple[str, ...] | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Updates:
    """How a rollout is spent: `count` optimiser updates on disjoint parts, split by groups or by actions, `passes` times over.

    After the first update the policy is no longer the one that sampled: ratios leave 1, and clipping acts.
    """

    by: Literal["group", "action"] = "group"
    count: int = 1
    passes: int = 1

    @property
    def total(self) -> int:
        """Optimiser updates of a step."""
        return self.count * self.passes


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
    benchmarks: dict[str, Annotated[Any, Role("benchmark")]] = field(default_factory=dict)
    """Figures of the whole held-out set, logged as eval/NAME/…; they take no part in the held-out score."""


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
    data: dict[str, Any] = field(default_factory=dict)
    """Values that the file uses as ${data.NAME}: a user's own paths, in one place."""
    method: str | None = None
    """The method (see `grpo-mm methods`) whose preset filled in what the file leaves out."""
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
    """Steps between sheets of rollout pictures or texts; 0: none."""
    sketch: Annotated[Any, Role("sketch")] | None = None
    """What the report draws of a text: spans on a time line, boxes on a picture; None: the text alone."""
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
        check_settings(self, world)

    def network_calls(self, step: int = 0) -> dict[str, int]:
        """Planned network calls of training step `step`; a run counts what it makes as calls/NAME_calls.

        rollout; train: forward and backward; value: forward passes without gradient before it; ref, old, ema: of these
        policies. What the collector samples beside the groups is in it, as much as there can be.
        """
        calls = self._calls(self.prompts_per_step, self.group_size, self.needs, step)
        prompts, samples = self.further_groups
        # Sampled and not trained: what the objective needs is not asked of them.
        further = self._calls(prompts, samples, frozenset(), step) if prompts else {}
        calls |= {name: calls.get(name, 0) + number for name, number in further.items() if name != "train"}
        recompute = self.old_logprobs == "recompute" and "logprobs" in self.needs
        # Objectives that couple more than a forward holds are computed in two passes.
        coupled = any(ORDER.index(term.couples) > ORDER.index(self.policy.unit) for term in self.objective)
        if recompute or coupled:
            calls["value"] = (recompute + coupled * self.updates.passes) * calls["train"]
        if recompute and "mean_shift_old" in self.needs:
            calls["old"] = calls["train"]
        calls["train"] *= self.updates.passes
        return calls

    @property
    def further_groups(self) -> tuple[int, int]:
        """(prompts, samples of each) that the collector asks for beside the groups of a step, at most."""
        if not hasattr(self.collector, "further_groups"):
            return 0, 0
        return self.collector.further_groups(self.prompts_per_step, self.group_size)

    def planned_reward_calls(self) -> int:
        """Rewards × distinct pictures of a step; a reward that compares pictures says how many calls a group takes."""
        prompts, samples = self.further_groups
        further = prompts * self._reward_calls(samples) if prompts else 0
        return self.prompts_per_step * self._reward_calls(self.group_size) + further

    def _calls(self, prompts: int, group_size: int, needs: frozenset[str], step: int) -> dict[str, int]:
        return self.engine.network_calls(
            self.policy, prompts=prompts, group_size=group_size, needs=needs, step=step, seed=self.seed
        )

    def _reward_calls(self, group_size: int) -> int:
        """Of one group."""
        pictures, columns = self.engine.pictures(group_size), self.engine.table_columns(group_size)
        set_sizes = torch.bincount(group_ids(columns["action"], columns["tag"])).tolist()
        each = [
            sum(scorer.use.planned_calls(size) for size in set_sizes)
            if hasattr(scorer.use, "planned_calls")
            else pictures
            for scorer in self.rewards.values()
        ]
        return sum(each)


def read(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a file and its overrides describe; `check` it before use."""
    try:
        config = build(RunConfig, read_yaml(path, overrides))
        _tell_what_stands_above(config)
        return config
    except ConfigError as error:
        raise ConfigError(
            str(error) if str(error).startswith((str(path), "no config file")) else f"{path}: {error}"
        ) from error


def _tell_what_stands_above(config: RunConfig) -> None:
    """A method fills in what the file leaves out: where the file has its own, that may not be what was wanted."""
    if config.method is None:
        return
    asked, hints = preset(config.method), typing.get_type_hints(RunConfig, include_extras=True)
    own = [
        key
        for key in ("advantage", "objective", "collector", "updates")
        if key in asked and dump(convert(hints[key], asked[key], path=key)) != dump(getattr(config, key))
    ]
    if own:
        log.warning(
            "method %s: the config has its own %s, which stand above the method's; %s takes the method's.",
            config.method, " and ".join(own), " ".join(f"{key}=null" for key in own),
        )  # fmt: skip


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
