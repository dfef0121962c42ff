"""What a run is set to: every key of its YAML file with its default, and the numbers that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from grpo_mm.advantages import Clamp, GroupNorm, WeightedSum
from grpo_mm.looking.default_rules import default_rules
from grpo_mm.looking.watch import Watched
from grpo_mm.objectives import ClippedRatio
from grpo_mm.outside import place
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
class Settings:
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
    default_watch: bool = True
    """Every run also warns of collapse and drift (see looking/default_rules); an entry of `watch` replaces the default rule of its
    name. false: only the entries of `watch` count."""
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
