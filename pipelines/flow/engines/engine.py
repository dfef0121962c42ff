"""From rows to images: a tree of denoising steps for rollouts, the plain ODE for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.findings import Finding
from grpo_mm.identity import FREE, NOTED
from grpo_mm.ledger.entries import Ledger, Plan
from grpo_mm.pipelines.flow import kernels
from grpo_mm.pipelines.flow.calibrated import Calibrated, NoiseFile
from grpo_mm.pipelines.flow.engines.examine import examine
from grpo_mm.pipelines.flow.ledger import flow_ledger
from grpo_mm.pipelines.flow.noise import AllSteps, trained_subset
from grpo_mm.pipelines.flow.own_schedule import check_scheduler_files, schedule_on_disk
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig
from grpo_mm.pipelines.flow.record import PROVIDES, FlowRecord, Half, Logprob
from grpo_mm.pipelines.flow.sampling import OdeSampler
from grpo_mm.pipelines.flow.solver import Euler
from grpo_mm.pipelines.flow.trees.branching import Chains, CleanImages, SingleSteps, Splits
from grpo_mm.pipelines.flow.trees.drawing import drawing
from grpo_mm.pipelines.flow.trees.forest import grow_rows
from grpo_mm.pipelines.flow.trees.grow import Moves
from grpo_mm.pipelines.flow.trees.tree import Tree
from grpo_mm.processes.rng import stream
from grpo_mm.registry import Role
from grpo_mm.types import Outputs, Rollout, Rows

MAX_STEPS, MAX_LEVEL = 1000, 1000.0
NOMINAL_TOKENS = 1024
"""Image tokens where no model is loaded yet: they move σ of resolution-dependent schedules, not the shape of a tree."""


@dataclass(frozen=True)
class FlowEngine(OdeSampler):
    """How images are sampled: the schedule, where it is random and by which kernel, what is shared, how the rest is solved."""

    steps: int = 10
    """Denoising steps of a rollout."""
    eval_steps: int = field(default=40, metadata=NOTED)
    """Denoising steps of an evaluation."""
    schedule: Annotated[Any, Role("schedule")] | None = None
    """None: the grid of the checkpoint's own scheduler."""
    kernel: Annotated[Any, Role("sampler")] = kernels.flow_sde
    """How a step is random."""
    logprob: Logprob = "gaussian"
    """cps: the published variance-free form; the same one in rollout and training."""
    noise: Annotated[Any, Role("noise")] = field(default_factory=AllSteps)
    """Which steps are random, and how much."""
    solver: Annotated[Any, Role("solver")] = field(default_factory=Euler)
    """How the other steps are solved."""
    seeds: int | None = None
    """Distinct initial latents of a group. None: every sample has its own; 1: all start from one and differ by the noise of
    their steps only (DanceGRPO); between them, neighbours share one (TempFlow-GRPO: 4 for 24 samples)."""
    tree: Annotated[Any, Role("tree")] = field(default_factory=Chains)
    """What a group's rollout shares, where it branches, and what is scored."""
    train_within: Annotated[Any, Role("noise")] | None = None
    """Only noisy steps that this window covers are trained (BranchGRPO's depth pruning); its level plays no part."""
    train_fraction: float = 1.0
    """Each row trains a random share of its noisy steps (DanceGRPO's τ)."""
    rollout_batch: int = field(default=16, metadata=FREE)
    """Latents in one sampling forward; changes memory and speed only."""

    @property
    def provides(self) -> frozenset[str]:
        """The values that a rollout of these settings can be replayed for."""
        absent = set() if self.logprob == "gaussian" else {"gaussian_logprobs"}
        # A mean over the row's trained steps; in a tree most rows train but a part of theirs.
        absent |= {"relative_std"} if isinstance(self._shape, Splits) else set()
        return PROVIDES - absent

    def check(self, policy: FlowPolicyConfig, *, group_size: int, training_steps: int = 1) -> None:
        """Raises ConfigError for settings that cannot work together."""
        if self.steps < 1 or self.eval_steps < 1 or self.rollout_batch < 1:
            raise ConfigError(
                f"engine: steps = {self.steps}, eval_steps = {self.eval_steps}, rollout_batch = {self.rollout_batch}; "
                "each must be at least 1."
            )
        if self.steps > MAX_STEPS:
            raise ConfigError(f"engine.steps = {self.steps} denoising steps; wanted at most {MAX_STEPS}.")
        for name, wanted in (
            ("noise", "trained_steps"),
            ("tree", "check"),
            ("solver", "grid"),
            ("schedule", "__call__"),
        ):
            if not hasattr(getattr(self, name), wanted) and not (name == "schedule" and self.schedule is None):
                raise ConfigError(
                    f"engine.{name} is {getattr(self, name)!r}, which has no `{wanted}`: it is no {name}."
                )
        if self.schedule is None:
            check_scheduler_files(policy.model)
        self.noise.check(self.steps)
        if self.noise.trained_steps(self.steps) < 1:
            raise ConfigError("engine.noise leaves no noisy step that can be trained: the last step never is.")
        if self.train_within is not None:
            self.train_within.check(self.steps)
        level = float(self._noise_level(step=0, seed=0).max())
        if level > MAX_LEVEL:
            raise ConfigError(f"a noise level of {level:g} drowns every picture; wanted at most {MAX_LEVEL:g}.")
        if self.kernel is kernels.ode or level <= 0:
            raise ConfigError(
                "a ratio objective needs noise: with the kernel 'ode' or a noise level of 0 every log-probability is "
                "undefined. Use flow_sde, dance_sde, cps or ddim with noise.level > 0."
            )
        named = getattr(self.noise, "kernel", None)
        if named is not None and self.kernel is not getattr(kernels, named, None):
            raise ConfigError(
                f"the noise levels belong to the kernel {named}, but engine.kernel is {self.kernel.__name__}: a level means "
                f"something else there. Use engine.kernel={named}."
            )
        known = self.schedule is not None and torch.equal(self._sigma(NOMINAL_TOKENS), self._sigma(2 * NOMINAL_TOKENS))
        if isinstance(self.noise, NoiseFile) and known:
            self.noise.check_schedule(self._sigma(NOMINAL_TOKENS))  # else it waits for the size of the model's latents
        if isinstance(self.noise, Calibrated) and not isinstance(self._shape, CleanImages):
            raise ConfigError("calibrated noise needs the gain of every step: use engine.tree={kind: clean_images}.")
        if not 0 < self.train_fraction <= 1:
            raise ConfigError(f"engine.train_fraction = {self.train_fraction}; wanted a share in (0, 1].")
        if isinstance(self.train_within, Calibrated):
            raise ConfigError("engine.train_within is a window of steps; calibrated noise is none.")
        if self.train_within is not None and isinstance(self._shape, SingleSteps):
            raise ConfigError(
                "engine.train_within would sample and score branches that are not trained: with single_steps choose the steps "
                "by engine.noise."
            )
        self._check_tree(group_size, training_steps)
        self._check_experts(policy, group_size, training_steps)
        # What a tree makes of the level counts: splitting steps may scale it.
        level = float(self.grid_and_tree(step=0, seed=0, group_size=group_size)[1].noise_V.max())
        if self.kernel in (kernels.cps, kernels.ddim) and level > 1:
            raise ConfigError(
                f"noise.level = {level:g}; the kernel takes η in (0, 1], and beyond it the std exceeds σ'."
            )

    def without_effect(self, policy: FlowPolicyConfig) -> list[str]:
        """Settings that others make void, a sentence each."""
        own = (
            next((f for f in fields(self.train_within) if f.name == "level"), None)
            if is_dataclass(self.train_within)
            else None
        )
        if own is None or getattr(self.train_within, "level", None) == own.default:
            return []
        return [
            "engine.train_within.level has no effect: the window says which noisy steps are trained, and engine.noise how noisy."
        ]

    def _check_tree(self, group_size: int, training_steps: int) -> None:
        seeds = self._seeds(group_size)
        if seeds < 1 or group_size % seeds:
            raise ConfigError(
                f"engine.seeds = {seeds} initial latents for group_size = {group_size} samples; wanted a divisor of it."
            )
        self.tree.check(steps=self.steps, noisy=self.actions(), group_size=group_size, seeds=seeds)
        for step in self._unlike_steps(training_steps):
            tree = self.grid_and_tree(step=step, seed=0, group_size=group_size)[1]
            if not tree.train_GA.any():
                raise ConfigError(
                    f"engine.train_within covers no noisy step at training step {step + 1}, where nothing would be trained. "
                    "Keep it within the steps that engine.noise makes noisy."
                )
        if self.train_fraction < 1 and (tree.credits_actions or "edge" in tree.columns):
            raise ConfigError(
                f"engine.train_fraction = {self.train_fraction} would sample and score branches that are not trained. "
                "Choose the steps with engine.noise instead."
            )

    def _check_experts(self, policy: FlowPolicyConfig, group_size: int, training_steps: int) -> None:
        """Of two networks one is trained: at every training step some noisy steps are its own, as far as files on this disk tell."""
        trains_at = getattr(policy.model, "trains_at", None)
        if trains_at is None or trains_at(torch.ones(1)) is None:
            return
        schedule = schedule_on_disk(policy.model) if self.schedule is None else self.schedule
        if schedule is None:
            return
        known = replace(self, schedule=schedule)
        for step in known._unlike_steps(training_steps):
            sigma_S1, tree = known.grid_and_tree(step=step, seed=0, group_size=group_size)
            trained = trains_at(sigma_S1[tree.level_V[tree.parent_V[tree.action_GA[tree.train_GA]]]])
            if trained is not None and not trained.any():
                raise ConfigError(
                    f"policy.model.trained names {' and '.join(policy.model.trained)}, and at training step {step + 1} no noisy step "
                    "is at its noise levels, so nothing would be trained there. Keep the noisy steps (engine.noise) where it says the "
                    "velocity, or train the other network too."
                )

    @property
    def _shape(self) -> Any:
        """The tree, or the one that it leaves unshared."""
        return getattr(self.tree, "of", self.tree)

    def _unlike_steps(self, training_steps: int) -> list[int]:
        """Training steps that differ in their noise or in what is pruned, so that windows are checked wherever they go."""
        first: dict[tuple[float, ...], int] = {}
        few = min(64, training_steps)
        for step in (*range(few), *range(few, training_steps, 1 + training_steps // 64), training_steps - 1):
            levels = self._noise_level(step=step, seed=0).tolist()
            if self.train_within is not None:
                levels += self.train_within(self._sigma(NOMINAL_TOKENS), step=step, seed=0).tolist()
            first.setdefault(tuple(levels), step)
        return list(first.values())

    def actions(self) -> int:
        """Actions of a row, A."""
        subset = trained_subset(self.noise.trained_steps(self.steps), fraction=self.train_fraction, generator=_any())
        return int(subset.numel())

    def trained_actions(self, group_size: int) -> int:
        """Actions of a group that are trained: an edge that samples share counts once."""
        if self.train_fraction < 1:
            return group_size * self.actions()
        return int(self.grid_and_tree(step=0, seed=0, group_size=group_size)[1].train_GA.sum())

    def grid_and_tree(
        self, *, step: int, seed: int, group_size: int, image_tokens: int = NOMINAL_TOKENS
    ) -> tuple[Tensor, Tree]:
        """(sigma_S1, tree of each group) of training step `step`, on the CPU."""
        noise_level_S = self._noise_level(step=step, seed=seed, image_tokens=image_tokens)
        sigma_S1, noise_level_S = self.solver.grid(self._sigma(image_tokens), noise_level_S)
        tree = self.tree(sigma_S1, noise_level_S, group_size=group_size, seeds=self._seeds(group_size))
        if self.train_within is not None:
            # In steps of the whole schedule: what a solver shortens lies after the noisy steps.
            window_S = self.train_within(self._sigma(image_tokens), step=step, seed=seed) > 0
            tree = replace(tree, train_GA=tree.train_GA & window_S[tree.level_V[tree.parent_V[tree.action_GA]]])
        return sigma_S1, tree

    def _sigma(self, image_tokens: int) -> Tensor:
        return self.nominal_schedule(self.steps, image_tokens=image_tokens)

    def _noise_level(self, *, step: int, seed: int, image_tokens: int = NOMINAL_TOKENS) -> Tensor:
        return self.noise(self._sigma(image_tokens), step=step, seed=seed)

    def _seeds(self, group_size: int) -> int:
        return group_size if self.seeds is None else self.seeds

    def table_columns(self, group_size: int) -> dict[str, Tensor]:
        """The columns of one group's table, so that a config can be rehearsed without sampling."""
        _, tree = self.grid_and_tree(step=0, seed=0, group_size=group_size)
        columns = {name: column[tree.sample_C] for name, column in tree.columns.items()}
        if "edge" in columns:
            columns["edge_logprob"] = torch.zeros(columns["edge"].shape)
        return {"sample": tree.sample_C, "action": tree.action_C, "tag": tree.tag_C} | columns

    @property
    def whole_groups(self) -> bool:
        """Whether the samples of a group depend on how many there are."""
        return not isinstance(self.tree, Chains)

    def pictures(self, group_size: int) -> int:
        """Distinct pictures of a group: what a reward is asked to score."""
        return self.grid_and_tree(step=0, seed=0, group_size=group_size)[1].pictures()

    def network_calls(
        self, policy: FlowPolicyConfig, *, prompts: int, group_size: int, needs: frozenset[str], step: int, seed: int
    ) -> dict[str, int]:
        """Planned network calls of training step `step`, by the names that a run counts them under; guidance counts twice.

        With `train_fraction` below 1 the training calls are the most there can be: each row draws its own steps.
        """
        _, tree = self.grid_and_tree(step=step, seed=seed, group_size=group_size)
        each = prompts * policy.model.network_rows(policy.guidance)
        training = tree.training_calls()
        if self.train_fraction < 1:
            training = min(training, group_size * self.actions())
        calls = {"rollout": each * tree.rollout_calls(), "train": each * training}
        if any("ref" in name.split("_") for name in needs):
            calls["ref"] = each * training
        return calls

    def describe(self, policy: FlowPolicyConfig, *, rows: int, group_size: int, needs: frozenset[str]) -> list[str]:
        """The tree of a prompt and an estimate of memory for `rows` on one process, in words; loads no model."""
        sigma_S1, tree = self.grid_and_tree(step=0, seed=0, group_size=group_size)
        report = drawing(tree, sigma_S1.numel() - 1, makes=policy.makes)
        if self.train_fraction < 1:
            report.append("  training at most: rows draw their steps")
        if self._moves(tree, group_size):
            report.append("  the first step's: they change as the window moves")
        return report

    def ledger(self, policy: FlowPolicyConfig, plan: Plan) -> Ledger:
        """Bytes and operations of a step; latents that trained actions start from or lead to are kept once."""
        tree = self.grid_and_tree(step=0, seed=0, group_size=plan.group_size)[1]
        kept_GA = tree.action_GA[tree.train_GA]
        stored = plan.prompts * int(torch.cat([kept_GA, tree.parent_V[kept_GA]]).unique().numel())
        others = sum(name in plan.calls for name in ("ref", "old")) + (
            "mean_shift_old" in plan.needs and "old" not in plan.calls
        )
        return flow_ledger(policy, self, plan, stored=stored, velocities=others * stored)

    def _moves(self, tree: Tree, group_size: int) -> bool:
        later = [self.grid_and_tree(step=step, seed=0, group_size=group_size)[1] for step in (1, 7, 60)]
        return any(other.rollout_calls() != tree.rollout_calls() for other in later)

    @torch.no_grad()
    def sample(
        self, policy: FlowPolicy, rows: Rows, *, step: int, seed: int, needs: frozenset[str]
    ) -> tuple[Rollout, Outputs]:
        """Grows the tree of every prompt, keeping the transitions that are trained, and decodes the images.

        `needs`: the values the objective will ask for; the sampling velocity is stored only if one of them needs it.
        """
        if self.schedule is None:
            return self.on_grid_of(policy).sample(policy, rows, step=step, seed=seed, needs=needs)
        self.on_grid_of(policy)
        size = policy.size(evaluation=False)
        tokens = policy.family.image_tokens(policy.pipe, *size)
        if isinstance(self.noise, NoiseFile):
            self.noise.check_schedule(self._sigma(tokens))
        sigma_S1, tree = self.grid_and_tree(step=step, seed=seed, group_size=rows.group_size, image_tokens=tokens)
        picked_NA = torch.stack([self._picked(tree, rows, i, step=step, seed=seed) for i in range(len(rows))])
        action_NA = tree.action_GA[rows.sample_N].gather(1, picked_NA)
        before_NA = tree.parent_V[action_NA]
        mask_NA = tree.train_GA[rows.sample_N].gather(1, picked_NA)
        policy.check_trains_at(sigma_S1[tree.level_V[tree.parent_V[tree.action_GA[tree.train_GA]]]])
        mask_NA &= policy.trains_at(sigma_S1[tree.level_V[before_NA]])
        constant_half = policy.config.detach_unconditional and policy.family.network_rows(policy.config.guidance) == 2
        keeps = {"velocity": "mean_shift_old" in needs, "of_none": constant_half}
        forest = grow_rows(
            policy, rows, tree, Moves(sigma_S1.to(policy.device), self.kernel, self.logprob, self.solver),
            keep=[(before_NA, mask_NA), (action_NA, mask_NA)], step=step, seed=seed, batch=self.rollout_batch,
            keep_network=[name for name, wanted in keeps.items() if wanted],
        )  # fmt: skip
        grown, nodes, device = forest.grown, tree.parent_V.numel(), policy.device
        record = FlowRecord(
            latent_V=grown.latent_K,
            level_V=tree.level_V[grown.node_K % nodes].to(device),
            condition_V=(grown.node_K // nodes).to(device),
            from_NA=forest.kept(before_NA).to(device),
            to_NA=forest.kept(action_NA).to(device),
            noise_level_NA=tree.noise_V[action_NA].to(device),
            sigma_S1=sigma_S1.to(device),
            condition=forest.condition,
            size=size,
            guidance=policy.config.guidance,
            kernel=self.kernel,
            logprob=self.logprob,
            velocity_old_V=grown.network_K.get("velocity"),
            half=Half(grown.network_K["of_none"], policy.snapshots.which) if constant_half else None,
        )
        behaviour_NA = forest.logprob(action_NA)
        columns = {name: _columns(column[rows.sample_N], picked_NA) for name, column in tree.columns.items()}
        if "edge" in columns:
            columns["edge_logprob"] = behaviour_NA.cpu()
        rollout = Rollout(
            prompts=rows.prompts,
            prompt_N=rows.prompt_N,
            sample_N=rows.sample_N,
            behaviour_NA=behaviour_NA,
            mask_NA=mask_NA.to(device),
            record=record,
            columns=columns,
        )
        return rollout, forest.outputs()

    def examine(self, policy: FlowPolicy, rows: Rows, *, seed: int) -> Iterator[Finding]:
        """Whether the sampler and the trainer compute the same; see `examine`."""
        return examine(self, policy, rows, seed=seed)

    def _picked(self, tree: Tree, rows: Rows, i: int, *, step: int, seed: int) -> Tensor:
        """Which of its actions row i trains, [A]."""
        actions = tree.action_GA.shape[1]
        if self.train_fraction == 1:
            return torch.arange(actions)
        generator = stream(seed, "train_steps", step, rows.prompts[rows.prompt_N[i]].id, int(rows.sample_N[i]))
        return trained_subset(actions, fraction=self.train_fraction, generator=generator)


def _columns(column: Tensor, picked_NA: Tensor) -> Tensor:
    return column.gather(1, picked_NA) if column.dim() == 2 else column


def _any() -> torch.Generator:
    return torch.Generator().manual_seed(0)
