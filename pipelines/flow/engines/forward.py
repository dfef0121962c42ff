"""Forward-process training: the actions are (t, noise) draws on finished samples, which any sampler may have made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE, NOTED
from grpo_mm.ledger.entries import Ledger, Plan
from grpo_mm.pipelines.flow import kernels
from grpo_mm.pipelines.flow.engines.engine import NOMINAL_TOKENS
from grpo_mm.pipelines.flow.engines.forward_record import ForwardRecord
from grpo_mm.pipelines.flow.ledger import flow_ledger
from grpo_mm.pipelines.flow.own_schedule import check_scheduler_files
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig
from grpo_mm.pipelines.flow.record import FORWARD_PROVIDES
from grpo_mm.pipelines.flow.sampling import OdeSampler
from grpo_mm.pipelines.flow.solver import DpmSolverPP
from grpo_mm.pipelines.flow.trees.branching import Chains
from grpo_mm.pipelines.flow.trees.drawing import drawing
from grpo_mm.pipelines.flow.trees.forest import grow_rows
from grpo_mm.pipelines.flow.trees.grow import Moves
from grpo_mm.pipelines.flow.trees.tree import Tree
from grpo_mm.processes.rng import stream
from grpo_mm.registry import Role
from grpo_mm.types import Outputs, Rollout, Rows


class Draws(Protocol):
    """Which noise levels a finished sample is trained at."""

    def count(self, steps: int) -> int: ...

    def __call__(self, sigma_S1: Tensor, generator: torch.Generator) -> Tensor:
        """[A] noise levels t in (0, 1] for one sample."""
        ...


@dataclass(frozen=True)
class EveryTimestep:
    """A random `fraction` of the sampler's noise levels, without repeats (DiffusionNFT).

    Source: arXiv:2509.16117 (DiffusionNFT), released code.
    """

    fraction: float = 0.99
    """Share of the sampler's noise levels that is drawn, in (0, 1]."""

    def count(self, steps: int) -> int:
        return max(1, int(steps * self.fraction))

    def __call__(self, sigma_S1: Tensor, generator: torch.Generator) -> Tensor:
        steps = sigma_S1.numel() - 1
        return sigma_S1[torch.randperm(steps, generator=generator)[: self.count(steps)].sort().values]


@dataclass(frozen=True)
class Stratified:
    """`number` of the sampler's noise levels, one from each equal part of the first `fraction` of them, σ = 1 left out (AWM).

    Source: arXiv:2509.25050 (AWM), released code.
    """

    number: int = 6
    """Noise levels that are drawn for each sample."""
    fraction: float = 0.9
    """Share of the sampler's noise levels, from the noisiest on, that draws are made from."""

    def count(self, steps: int) -> int:
        return self.number

    def __call__(self, sigma_S1: Tensor, generator: torch.Generator) -> Tensor:
        last = max(1, math.floor((sigma_S1.numel() - 2) * self.fraction))
        edges = torch.linspace(0, last, self.number + 1, dtype=torch.float64)
        place = edges[:-1] + torch.rand(self.number, generator=generator, dtype=torch.float64) * edges.diff()
        return sigma_S1[1 + place.floor().long().clamp_max(last - 1)]


@dataclass(frozen=True)
class ForwardProcess(OdeSampler):
    """Samples by the ODE, then draws noise levels and noise on the finished samples: DiffusionNFT, AWM.

    No log-probability exists here: objectives are {kind: nft} and {kind: awm}. Rollouts are best made without guidance.
    """

    steps: int = 10
    """Denoising steps in training."""
    eval_steps: int = field(default=40, metadata=NOTED)
    """Denoising steps in evaluation and for `sample`."""
    schedule: Annotated[Any, Role("schedule")] | None = None
    """None: the grid of the checkpoint's own scheduler."""
    solver: Annotated[Any, Role("solver")] = field(default_factory=DpmSolverPP)
    """How the ODE is solved."""
    draws: Annotated[Any, Role("draws")] = field(default_factory=EveryTimestep)
    """At which noise levels finished samples are trained."""
    beta: float = field(default=1.0, metadata=NOTED)
    """How far the implicit policies of `nft` lie from the old one: 1 is safe, .1 is fast. Not used by `awm`."""
    rollout_batch: int = field(default=16, metadata=FREE)
    """Pictures in one sampling forward; changes memory and speed, not the pictures."""

    @property
    def provides(self) -> frozenset[str]:
        return FORWARD_PROVIDES

    def check(self, policy: FlowPolicyConfig, *, group_size: int, training_steps: int = 1) -> None:
        if min(self.steps, self.eval_steps, self.rollout_batch, self.actions()) < 1 or self.beta <= 0:
            raise ConfigError(
                f"engine: steps = {self.steps}, eval_steps = {self.eval_steps}, rollout_batch = {self.rollout_batch}, "
                f"{self.actions()} draws, beta = {self.beta}; wanted at least 1 each, and beta above 0."
            )
        if self.schedule is None:
            check_scheduler_files(policy.model)
        fraction = getattr(self.draws, "fraction", 1.0)
        if not 0 < fraction <= 1:
            raise ConfigError(f"engine.draws.fraction = {fraction}; wanted a share in (0, 1].")
        sigma_S1 = self.nominal_schedule(self.steps, image_tokens=NOMINAL_TOKENS)
        if float(self.draws(sigma_S1, torch.Generator()).min()) <= 0:
            raise ConfigError(f"engine.draws finds no noise level to train in {self.steps} step(s). Use more steps.")

    def actions(self) -> int:
        return self.draws.count(self.steps)

    def trained_actions(self, group_size: int) -> int:
        """Draws of a group."""
        return group_size * self.actions()

    def _tree(self, sigma_S1: Tensor, group_size: int) -> Tree:
        no_noise_S = torch.zeros(sigma_S1.numel() - 1)
        return Chains()(sigma_S1, no_noise_S, group_size=group_size, seeds=group_size)

    def table_columns(self, group_size: int) -> dict[str, Tensor]:
        tree = self._tree(self.nominal_schedule(self.steps, image_tokens=NOMINAL_TOKENS), group_size)
        return {"sample": tree.sample_C, "action": tree.action_C, "tag": tree.tag_C, **tree.columns}

    def pictures(self, group_size: int) -> int:
        return group_size

    def network_calls(
        self, policy: FlowPolicyConfig, *, prompts: int, group_size: int, needs: frozenset[str], step: int, seed: int
    ) -> dict[str, int]:
        """Planned network calls of a step, by the names that a run counts them under; every policy is asked at every draw."""
        tree = self._tree(self.nominal_schedule(self.steps, image_tokens=NOMINAL_TOKENS), group_size)
        each = prompts * policy.model.network_rows(policy.guidance)
        drawn = each * group_size * self.actions()
        others = {name: drawn for name, asked in _others(needs).items() if asked}
        return {"rollout": each * tree.rollout_calls(), "train": drawn, **others}

    def describe(self, policy: FlowPolicyConfig, *, rows: int, group_size: int, needs: frozenset[str]) -> list[str]:
        """The tree of a prompt and an estimate of memory for `rows` on one process, in words; loads no model."""
        tree = self._tree(self.nominal_schedule(self.steps, image_tokens=NOMINAL_TOKENS), group_size)
        report = drawing(tree, self.steps, makes=policy.makes)
        report[-1] = f"  {group_size} {policy.makes}, each trained at {self.actions()} draws of (t, noise)"
        return report

    def ledger(self, policy: FlowPolicyConfig, plan: Plan) -> Ledger:
        """Bytes and operations of a step: finished latents, and the noise and velocities of each draw."""
        draws = plan.rows * self.actions()
        others = sum(_others(plan.needs).values())
        return flow_ledger(policy, self, plan, stored=plan.rows + draws, velocities=others * draws)

    @torch.no_grad()
    def sample(
        self, policy: FlowPolicy, rows: Rows, *, step: int, seed: int, needs: frozenset[str]
    ) -> tuple[Rollout, Outputs]:
        """Finished samples with their draws, and the velocity of the policy that sampled where an objective needs it."""
        size = policy.size(evaluation=False)
        tokens = policy.family.image_tokens(policy.pipe, *size)
        sigma_S1 = self.on_grid_of(policy).schedule(self.steps, image_tokens=tokens)
        tree = self._tree(sigma_S1, rows.group_size)
        end_N = tree.node_C[rows.sample_N]
        forest = grow_rows(
            policy, rows, tree, Moves(sigma_S1.to(policy.device), kernels.ode, "gaussian", self.solver),
            keep=[(end_N, torch.ones_like(end_N, dtype=torch.bool))], step=step, seed=seed, batch=self.rollout_batch,
        )  # fmt: skip
        clean_N = forest.grown.latent_K[forest.kept(end_N).to(policy.device)]
        sigma_NA, noise_NA = self._draw(policy, rows, sigma_S1, step=step, seed=seed, shape=clean_N.shape[1:])
        policy.check_trains_at(sigma_S1[:-1])
        mask_NA = policy.trains_at(sigma_NA)
        rollout = Rollout(
            prompts=rows.prompts,
            prompt_N=rows.prompt_N,
            sample_N=rows.sample_N,
            behaviour_NA=torch.full_like(sigma_NA, torch.nan),  # no engine gave these actions a probability
            mask_NA=mask_NA,
            record=ForwardRecord(
                clean_N=clean_N,
                noise_NA=noise_NA,
                sigma_NA=sigma_NA,
                condition=forest.condition,
                condition_N=forest.place_N.to(policy.device),
                size=size,
                guidance=policy.config.guidance,
                beta=self.beta,
            ),
        )
        if _others(needs)["old"]:
            rollout = policy.with_values_of("old", rollout, mask_NA, weights=None)
        return rollout, forest.outputs()

    def _draw(
        self, policy: FlowPolicy, rows: Rows, sigma_S1: Tensor, *, step: int, seed: int, shape: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """(t [N, A], noise [N, A, ...]) of streams named by prompt and sample."""
        sigma, noise = [], []
        for p, s in zip(rows.prompt_N.tolist(), rows.sample_N.tolist(), strict=True):
            generator = stream(seed, "draws", step, rows.prompts[p].id, s)
            sigma.append(self.draws(sigma_S1, generator))
            noise.append(torch.randn(len(sigma[-1]), *shape, generator=generator))
        return tuple(torch.stack(v).to(policy.device, policy.math_dtype) for v in (sigma, noise))  # type: ignore[return-value]


def _others(needs: frozenset[str]) -> dict[str, bool]:
    """Which other policies' velocities the objective asks for."""
    return {
        "old": bool(needs & {"nft_plus", "nft_minus", "matching_loss_old"}),
        "ref": "velocity_shift_ref" in needs,
        "ema": "velocity_shift_ema" in needs,
    }
