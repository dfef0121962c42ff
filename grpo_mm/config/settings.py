"""What a run is set to: every key of its YAML file with its default, and the numbers that follow from them."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from grpo_mm.advantages import Clamp, GroupNorm, WeightedSum
from grpo_mm.config.by_policy import defaults_of
from grpo_mm.config.typed_yaml import convert
from grpo_mm.identity import FREE, NOTED, REFUSED
from grpo_mm.launch.settings import Launch
from grpo_mm.looking.default_rules import default_rules
from grpo_mm.looking.watch import Watched
from grpo_mm.objectives import ClippedRatio
from grpo_mm.outside import place
from grpo_mm.processes.distributed import Distributed
from grpo_mm.registry import Role
from grpo_mm.rollout.collectors.sample_and_score import SampleAndScore
from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.prompt_stream import Source
from grpo_mm.rollout.scoring import Scorer
from grpo_mm.types import ORDER
from grpo_mm.weights.optim import Optim
from grpo_mm.weights.snapshots import Ema, ReferenceReset, SamplingPolicy


@dataclass(frozen=True)
class Updates:
    """How a rollout is spent: `count` optimiser updates on disjoint parts, split by groups or by actions, `passes` times over.

    After the first update the policy is no longer the one that sampled: ratios leave 1, and clipping acts.
    """

    by: Literal["group", "action"] = field(default="group", metadata=REFUSED)
    """Parts of whole groups, or of single actions of all rows."""
    count: int = field(default=1, metadata=REFUSED)
    """Optimiser updates of one pass."""
    passes: int = field(default=1, metadata=REFUSED)
    """How often the rollout is gone through."""

    @property
    def total(self) -> int:
        """Optimiser updates of a step."""
        return self.count * self.passes


@dataclass(frozen=True)
class Evaluation:
    """Held-out evaluation, deterministic: every `every` steps, and before and after training."""

    every: int = field(default=0, metadata=FREE)
    """0: only before and after."""
    limit: int | None = field(default=None, metadata=NOTED)
    """At most so many prompts of each source."""
    samples_per_prompt: int = field(default=1, metadata=NOTED)
    """Pictures or answers of each held-out prompt."""
    seed: int = field(default=0, metadata=REFUSED)
    """Of the fixed noise; apart from the run's seed, so that runs are compared on the same pictures."""
    show: int = field(default=16, metadata=FREE)
    """Pictures kept of each evaluation."""
    patience: int | None = field(default=None, metadata=NOTED)
    """Stop after so many evaluations without a better held-out score."""
    benchmarks: dict[str, Annotated[Any, Role("benchmark")]] = field(default_factory=dict, metadata=FREE)
    """Figures of the whole held-out set, logged as eval/NAME/…; they take no part in the held-out score."""


@dataclass(frozen=True)
class Checkpoints:
    """Every `every` steps and at the end; the last `keep_last` and the best one stay."""

    every: int = field(default=50, metadata=FREE)
    """Steps between checkpoints; 0: only at the end and where a run is asked to stop."""
    keep_last: int = field(default=2, metadata=FREE)
    """So many of the newest stay."""
    keep_best: bool = field(default=True, metadata=FREE)
    """The one with the best held-out score stays as well."""
    in_background: bool = field(default=False, metadata=FREE)
    """Written and hashed while training goes on, from a copy in main memory; the same files. The next one, the end of the run, and
    whatever ends it early wait for it."""


class _ByPolicy(tuple[Any, ...]):
    """Nothing was said: the policy says it."""


BY_POLICY = _ByPolicy()
OPTIM_BY_POLICY = Optim()
"""Known by being this very object."""


@dataclass(frozen=True)
class Settings:
    """One run. What a file omits is the default here, or what the policy says (`config.by_policy`)."""

    name: str = field(metadata=FREE)
    """Of the run, and of its folder below `runs_dir`."""
    policy: Annotated[Any, Role("policy")] = field(metadata=REFUSED)
    """The model that is trained, with its adapter."""
    engine: Annotated[Any, Role("engine")] = field(metadata=REFUSED)
    """How it is sampled."""
    prompts: dict[str, Source] = field(metadata=NOTED)
    """What is trained on: sources by name."""
    steps: int = field(metadata=FREE)
    """Rollouts, each with its updates."""
    prompts_per_step: int = field(metadata=REFUSED)
    """Groups of a step, over all processes."""
    group_size: int = field(metadata=REFUSED)
    """Samples of a prompt that are compared with each other."""
    data: dict[str, Any] = field(default_factory=dict, metadata=FREE)
    """Values that the file uses as ${data.NAME}: a user's own paths, in one place."""
    method: str | None = field(default=None, metadata=FREE)
    """The method (see `grpo-mm methods`) whose preset filled in what the file leaves out."""
    rewards: dict[str, Scorer] = field(default_factory=dict, metadata=NOTED)
    """At least one; those given to `grpo_mm.train` in Python take their place."""
    seed: int = field(default=0, metadata=REFUSED)
    """Of all that is drawn in training."""
    updates: Updates = field(default_factory=Updates, metadata=REFUSED)
    """How a rollout is spent."""
    collector: Annotated[Any, Role("strategy")] = field(default_factory=SampleAndScore, metadata=REFUSED)
    """What is sampled and how often."""
    advantage: tuple[Annotated[Any, Role("advantage")], ...] = field(default=BY_POLICY, metadata=REFUSED)
    """The stages from rewards to advantages, in order; left out: those that the policy says."""
    objective: tuple[Annotated[Any, Role("objective")], ...] = field(default=BY_POLICY, metadata=REFUSED)
    """The terms of the loss; left out: those that the policy says."""
    old_logprobs: Literal["rollout", "recompute", "auto"] = field(default="rollout", metadata=NOTED)
    """What ratios are taken against. rollout: what the engine says it sampled from. recompute: one pass in training shapes before
    the first update. auto: the same without that pass where a rollout makes one update, which takes its own first forward; ratios
    are then 1. Texts in low precision want auto: there the sampler's numbers differ from the trainer's."""
    rollout_ahead: int = field(default=0, metadata=NOTED)
    """1: the rows of a step are drawn with the weights that the step before it began with, beside or before its update, whichever the
    sampler allows (`grpo-mm show` says which); 0: with the present ones. The rows are then old by the updates of a step, which is corrected by
    {kind: truncated, of: …}, by the ratios of `old_logprobs: rollout`, or, as far as ratios go, by `recompute`."""
    optim: Optim = field(default=OPTIM_BY_POLICY, metadata=REFUSED)
    """The optimiser and its learning rate."""
    ema: Ema | None = field(default=None, metadata=REFUSED)
    """Averaged weights; evaluation and the product use them."""
    sampling: SamplingPolicy | None = field(default=None, metadata=REFUSED)
    """Rollouts come from a slow copy of the weights; None: from the weights."""
    reference_reset: ReferenceReset | None = field(default=None, metadata=REFUSED)
    """When the reference becomes the present policy; None: never."""
    reference_dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata=REFUSED)
    """Of the reference where all weights are trained. bfloat16: half of its memory, for a policy that computes in bfloat16: its products see
    the same weights, and where they are cut over processes all of the network does."""
    eval_prompts: dict[str, Source] = field(default_factory=dict, metadata=NOTED)
    """Held-out prompts; without them nothing is evaluated."""
    evaluation: Evaluation = field(default_factory=Evaluation, metadata=NOTED)
    """When and how held-out prompts are asked."""
    watch: dict[str, Watched] = field(default_factory=dict, metadata=FREE)
    """Rewards that are logged and not optimised, and bands of metrics with what to do when they are left."""
    preflight: bool = field(default=True, metadata=FREE)
    """Rewards and watches load and score two made-up outputs before a model is loaded; free disk space is looked at."""
    default_watch: bool = field(default=True, metadata=FREE)
    """Every run also warns of collapse and drift (see looking/default_rules); an entry of `watch` replaces the default rule of its
    name. false: only the entries of `watch` count."""
    offload_rewards: bool = field(default=False, metadata=FREE)
    """Network rewards leave the device while they are not asked."""
    max_reward_calls: int | None = field(default=None, metadata=FREE)
    """Budget: rewards × pictures of a step, comparisons of a judge included; a config that plans more is refused."""
    samples_every: int = field(default=10, metadata=FREE)
    """Steps between sheets of rollout pictures or texts; 0: none."""
    sketch: Annotated[Any, Role("sketch")] | None = field(default=None, metadata=FREE)
    """What the report draws of a text: spans on a time line, boxes on a picture; None: the text alone."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints, metadata=FREE)
    """When the run is saved, and what is kept."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = field(default=(), metadata=FREE)
    """Where metrics are also written; an extra has to be installed."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=NOTED)
    """Which of several GPUs: CUDA_VISIBLE_DEVICES, or the launcher."""
    distributed: Distributed = field(default_factory=Distributed, metadata=FREE)
    """How several processes share the weights; with one it changes nothing."""
    launch: Launch = field(default_factory=Launch, metadata=FREE)
    """How `grpo-mm launch` places the run and what scores for it."""
    matmul: Literal["highest", "tf32"] = field(default="tf32", metadata=NOTED)
    """How a GPU multiplies float32 matrices. tf32: operands with 10 bits of fraction, several times as fast, as the published
    settings of flow models have it. highest: float32 throughout. Nothing on a CPU."""
    threads: int | None = field(default=None, metadata=FREE)
    """CPU threads of torch; fix it where runs must agree bit for bit."""
    runs_dir: str = field(default="runs", metadata=FREE)
    """The folder of all run folders."""

    def __post_init__(self) -> None:
        given = {
            key: getattr(self, key)
            for key, default in (("advantage", BY_POLICY), ("objective", BY_POLICY), ("optim", OPTIM_BY_POLICY))
            if getattr(self, key) is not default
        }
        if len(given) < 3:
            said = defaults_of(self.policy, self.engine)
            without = {
                "advantage": (GroupNorm(), WeightedSum(), Clamp()),
                "objective": (ClippedRatio(),),
                "optim": Optim(),
            }
            hints = typing.get_type_hints(Settings, include_extras=True)
            for key in set(without) - set(given):
                value = convert(hints[key], said[key], path=key) if key in said else without[key]
                object.__setattr__(self, key, value)

    @property
    def folder(self) -> Path:
        return place(self.runs_dir, what="runs_dir") / self.name

    @property
    def watched_rewards(self) -> dict[str, Watched]:
        """The entries of `watch` that score; the others only read metrics."""
        return {name: entry for name, entry in self.watch.items() if entry.use is not None}

    @property
    def default_rules(self) -> dict[str, Watched]:
        """The default rules that the entries of `watch` leave in force."""
        return default_rules(self.watch) if self.default_watch else {}

    @property
    def needs(self) -> frozenset[str]:
        """Names of all values that the objective reads."""
        return frozenset().union(*(term.needs for term in self.objective))

    @property
    def needs_reference(self) -> bool:
        return any("ref" in name.split("_") for name in self.needs)

    @property
    def old_logprobs_of(self) -> Literal["rollout", "recompute", "update"]:
        """Where old log-probabilities come from: `old_logprobs`, with what its auto means here. update: its own forward, detached."""
        if self.old_logprobs != "auto":
            return self.old_logprobs
        # A slow copy that samples is another policy, and means of steps (`mean_shift_old`) are kept before the update.
        alone = self.updates.total == 1 and self.sampling is None and "mean_shift_old" not in self.needs
        return "update" if alone else "recompute"

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
        recompute = self.old_logprobs_of == "recompute" and "logprobs" in self.needs
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
