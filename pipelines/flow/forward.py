"""Forward-process training: the actions are (t, noise) draws on finished samples, which any sampler may have made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from grpo_mm.config import Role
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow import kernels
from grpo_mm.pipelines.flow.drawing import drawing
from grpo_mm.pipelines.flow.engine import NOMINAL_TOKENS
from grpo_mm.pipelines.flow.forest import grow_rows
from grpo_mm.pipelines.flow.grow import Moves
from grpo_mm.pipelines.flow.memory import memory_lines
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig
from grpo_mm.pipelines.flow.record import FORWARD_PROVIDES
from grpo_mm.pipelines.flow.sampling import OdeSampler
from grpo_mm.pipelines.flow.schedule import DiffusersSd3
from grpo_mm.pipelines.flow.solver import DpmSolverPP
from grpo_mm.pipelines.flow.tree import Chains, Tree
from grpo_mm.rng import stream
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
    fraction: float = 0.9

    def count(self, steps: int) -> int:
        return self.number

    def __call__(self, sigma_S1: Tensor, generator: torch.Generator) -> Tensor:
        last = max(1, math.floor((sigma_S1.numel() - 2) * self.fraction))
        edges = torch.linspace(0, last, self.number + 1, dtype=torch.float64)
        place = edges[:-1] + torch.rand(self.number, generator=generator, dtype=torch.float64) * edges.diff()
        return sigma_S1[1 + place.floor().long().clamp_max(last - 1)]


@dataclass(frozen=True)
class ForwardRecord:
    """Finished samples and the draws on them; `...` are the axes of one latent."""

    clean_N: Tensor
    """[N, ...] finished latents x0."""
    noise_NA: Tensor
    """[N, A, ...] noise e; the state of an action is x_t = (1 - t)·x0 + t·e."""
    sigma_NA: Tensor
    """[N, A] noise level t."""
    condition: Mapping[str, Tensor]
    condition_N: Tensor
    size: tuple[int, int]
    guidance: float
    beta: float
    velocity_NA: Mapping[str, Tensor] = field(default_factory=dict)
    """Velocities of other policies at the same states: "old" sampled, "ref", "ema"."""

    def states(self, index: Tensor) -> Tensor:
        """Every action starts from a state of its own."""
        return index

    def network_input(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t [n, ...], t [n], condition index [n])."""
        clean, noise, t, t_column = self._at(state)
        return (1 - t_column) * clean + t_column * noise, t, self.condition_N[state // self.sigma_NA.shape[1]]

    def _at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = self.sigma_NA.flatten()[index]
        clean, noise = self.clean_N[index // self.sigma_NA.shape[1]], self.noise_NA.flatten(0, 1)[index]
        return clean, noise, t, t.view(-1, *([1] * (clean.dim() - 1)))

    def with_velocity(self, name: str, state: Tensor, velocity: Tensor) -> ForwardRecord:
        stored = torch.zeros_like(self.noise_NA)
        stored.flatten(0, 1)[state] = velocity
        return replace(self, velocity_NA={**self.velocity_NA, name: stored})

    def take(self, rows: Tensor) -> ForwardRecord:
        names = ("clean_N", "noise_NA", "sigma_NA", "condition_N")
        velocity_NA = {name: value[rows] for name, value in self.velocity_NA.items()}
        return replace(self, **{name: getattr(self, name)[rows] for name in names}, velocity_NA=velocity_NA)

    def cat(self, others: Sequence[ForwardRecord]) -> ForwardRecord:
        parts = [self, *others]
        size = [next(iter(part.condition.values())).shape[0] for part in parts]
        start = [sum(size[:i]) for i in range(len(parts))]
        return replace(
            self,
            **{name: torch.cat([getattr(p, name) for p in parts]) for name in ("clean_N", "noise_NA", "sigma_NA")},
            condition={k: torch.cat([p.condition[k] for p in parts]) for k in self.condition},
            condition_N=torch.cat([p.condition_N + n for p, n in zip(parts, start)]),
            velocity_NA={k: torch.cat([p.velocity_NA[k] for p in parts]) for k in self.velocity_NA},
        )

    def values(self, index: Tensor, velocity: Tensor, needs: frozenset[str], mask_NA: Tensor) -> dict[str, Tensor]:
        """The named values at n flat positions, given the velocity there, [n, ...]; see `FORWARD_PROVIDES`."""
        clean, noise, t, t_column = self._at(index)
        others = {name: value.flatten(0, 1)[index] for name, value in self.velocity_NA.items()}
        values = {"sigma": t, "beta": torch.full_like(t, self.beta)}
        if "matching_loss" in needs:
            values["matching_loss"] = matching_loss(velocity, clean, noise)
        if "matching_loss_old" in needs:
            values["matching_loss_old"] = matching_loss(others["old"], clean, noise)
        if "nft_plus" in needs:
            x = (1 - t_column) * clean + t_column * noise
            values["nft_plus"], values["nft_minus"] = nft_errors(
                x, clean, t_column, velocity, others["old"], beta=self.beta
            )
        for name in ("ref", "ema"):
            if f"velocity_shift_{name}" in needs:
                values[f"velocity_shift_{name}"] = _mean((velocity - others[name]) ** 2)
        return values


def _mean(value: Tensor) -> Tensor:
    return value.flatten(1).mean(1)


def matching_loss(velocity: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """ℓ = mean over elements of (v - (e - x0))², [n], float64.

    Source: arXiv:2509.25050 (AWM), with the sign of x_t = (1 - t)·x0 + t·e.
    """
    return _mean((velocity.double() - (noise - clean).double()) ** 2)


def nft_errors(
    x: Tensor, clean: Tensor, t: Tensor, velocity: Tensor, velocity_old: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """‖x̂0± - x0‖²/w± of the implicit positive and negative policies, mean over elements, [n] each.

    v⁺ = β·v + (1 - β)·v_old, v⁻ = (1 + β)·v_old - β·v, x̂0± = x_t - t·v±, and w± = mean|x̂0± - x0|, at least 1e-5, which
    takes no gradient and is computed in float64.

    Source: arXiv:2509.16117 (DiffusionNFT), eqs. 9–12 and the self-normalised form of section 3.3.
    """
    plus = beta * velocity + (1 - beta) * velocity_old
    minus = (1 + beta) * velocity_old - beta * velocity
    return tuple(_self_normalised(x - t * implicit - clean) for implicit in (plus, minus))  # type: ignore[return-value]


def _self_normalised(error: Tensor) -> Tensor:
    width = _mean(error.detach().double().abs()).clamp_min(1e-5)
    return _mean(error**2) / width.to(error.dtype)


@dataclass(frozen=True)
class ForwardProcess(OdeSampler):
    """Samples by the ODE, then draws noise levels and noise on the finished samples: DiffusionNFT, AWM.

    No log-probability exists here: objectives are {kind: nft} and {kind: awm}. Rollouts are best made without guidance.
    """

    steps: int = 10
    eval_steps: int = 40
    schedule: Annotated[Any, Role("schedule")] = field(default_factory=DiffusersSd3)
    solver: Annotated[Any, Role("solver")] = field(default_factory=DpmSolverPP)
    draws: Annotated[Any, Role("draws")] = field(default_factory=EveryTimestep)
    beta: float = 1.0
    """How far the implicit policies of `nft` lie from the old one: 1 is safe, .1 is fast. Not used by `awm`."""
    rollout_batch: int = 16

    @property
    def provides(self) -> frozenset[str]:
        return FORWARD_PROVIDES

    def check(self, policy: FlowPolicyConfig, *, group_size: int) -> None:
        if min(self.steps, self.eval_steps, self.rollout_batch, self.actions()) < 1 or self.beta <= 0:
            raise ConfigError(
                f"engine: steps = {self.steps}, eval_steps = {self.eval_steps}, rollout_batch = {self.rollout_batch}, "
                f"{self.actions()} draws, beta = {self.beta}; wanted at least 1 each, and beta above 0."
            )
        fraction = getattr(self.draws, "fraction", 1.0)
        if not 0 < fraction <= 1:
            raise ConfigError(f"engine.draws.fraction = {fraction}; wanted a share in (0, 1].")
        sigma_S1 = self.schedule(self.steps, image_tokens=NOMINAL_TOKENS)
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
        tree = self._tree(self.schedule(self.steps, image_tokens=NOMINAL_TOKENS), group_size)
        return {"sample": tree.sample_C, "action": tree.action_C, "tag": tree.tag_C, **tree.columns}

    def pictures(self, group_size: int) -> int:
        return group_size

    def network_calls(
        self, policy: FlowPolicyConfig, *, prompts: int, group_size: int, needs: frozenset[str], step: int, seed: int
    ) -> dict[str, int]:
        """Planned network calls of a step, by the names that a run counts them under; every policy is asked at every draw."""
        tree = self._tree(self.schedule(self.steps, image_tokens=NOMINAL_TOKENS), group_size)
        each = prompts * policy.model.network_rows(policy.guidance)
        drawn = each * group_size * self.actions()
        others = {name: drawn for name, asked in _others(needs).items() if asked}
        return {"rollout": each * tree.rollout_calls(), "train": drawn, **others}

    def describe(self, policy: FlowPolicyConfig, *, rows: int, group_size: int, needs: frozenset[str]) -> list[str]:
        """The tree of a prompt and an estimate of memory for `rows` on one process, in words; loads no model."""
        tree = self._tree(self.schedule(self.steps, image_tokens=NOMINAL_TOKENS), group_size)
        report = drawing(tree, self.steps)
        report[-1] = f"  {group_size} pictures, each trained at {self.actions()} draws of (t, noise)"
        return report + memory_lines(policy, self, rows=rows, needs_reference=_others(needs)["ref"])

    @torch.no_grad()
    def sample(
        self, policy: FlowPolicy, rows: Rows, *, step: int, seed: int, needs: frozenset[str]
    ) -> tuple[Rollout, Outputs]:
        """Finished samples with their draws, and the velocity of the policy that sampled where an objective needs it."""
        size = policy.size(evaluation=False)
        tokens = policy.family.image_tokens(policy.pipe, *size)
        sigma_S1 = self.schedule(self.steps, image_tokens=tokens)
        tree = self._tree(sigma_S1, rows.group_size)
        end_N = tree.node_C[rows.sample_N]
        forest = grow_rows(
            policy, rows, tree, Moves(sigma_S1.to(policy.device), kernels.ode, "gaussian", self.solver),
            keep=[(end_N, torch.ones_like(end_N, dtype=torch.bool))], step=step, seed=seed, batch=self.rollout_batch,
            keep_velocity=False,
        )  # fmt: skip
        clean_N = forest.grown.latent_K[forest.kept(end_N).to(policy.device)]
        sigma_NA, noise_NA = self._draw(policy, rows, sigma_S1, step=step, seed=seed, shape=clean_N.shape[1:])
        mask_NA = torch.ones_like(sigma_NA, dtype=torch.bool)
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
            rollout = policy.with_velocity_of("old", rollout, mask_NA, weights=None)
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
