"""From rows to images: one loop over denoising steps for rollouts and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from grpo_mm.clock import count, phase
from grpo_mm.config import Role
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow import kernels
from grpo_mm.pipelines.flow.memory import memory_lines
from grpo_mm.pipelines.flow.noise import AllSteps, trained_mask, trained_subset
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig
from grpo_mm.pipelines.flow.record import PROVIDES, FlowRecord, Logprob, logprob_of, transition
from grpo_mm.pipelines.flow.schedule import DiffusersSd3
from grpo_mm.pipelines.flow.solver import Euler
from grpo_mm.rng import stream
from grpo_mm.types import Outputs, Rollout, Rows


@dataclass(frozen=True)
class FlowEngine:
    """How images are sampled: the schedule, where it is random and by which kernel, how the rest is solved."""

    steps: int = 10
    eval_steps: int = 40
    schedule: Annotated[Any, Role("schedule")] = field(default_factory=DiffusersSd3)
    kernel: Annotated[Any, Role("sampler")] = kernels.flow_sde
    logprob: Logprob = "gaussian"
    """cps: the published variance-free form; the same one in rollout and training."""
    noise: Annotated[Any, Role("noise")] = field(default_factory=AllSteps)
    solver: Annotated[Any, Role("solver")] = field(default_factory=Euler)
    init_noise: Literal["independent", "shared"] = "independent"
    """shared: all samples of a group start from one latent and differ by the noise of their steps only."""
    train_fraction: float = 1.0
    """Each row trains a random share of its noisy steps (DanceGRPO's τ)."""
    rollout_batch: int = 16
    """Rows in one sampling forward; changes memory and speed only."""

    @property
    def provides(self) -> frozenset[str]:
        """The values that a rollout of these settings can be replayed for."""
        return PROVIDES if self.logprob == "gaussian" else PROVIDES - {"gaussian_logprobs"}

    def check(self, policy: FlowPolicyConfig) -> None:
        """Raises ConfigError for settings that cannot work together."""
        if self.steps < 1 or self.eval_steps < 1 or self.rollout_batch < 1:
            raise ConfigError(
                f"engine: steps = {self.steps}, eval_steps = {self.eval_steps}, rollout_batch = {self.rollout_batch}; "
                "each must be at least 1."
            )
        if self.kernel is kernels.ode or self.noise.level <= 0:
            raise ConfigError(
                "a ratio objective needs noise: with the kernel 'ode' or a noise level of 0 every log-probability is "
                "undefined. Use flow_sde, dance_sde, cps or ddim with noise.level > 0."
            )
        if not 0 < self.train_fraction <= 1:
            raise ConfigError(f"engine.train_fraction = {self.train_fraction}; wanted a share in (0, 1].")
        if self.kernel in (kernels.cps, kernels.ddim) and self.noise.level > 1:
            raise ConfigError(f"noise.level = {self.noise.level}; the kernel takes η in (0, 1].")
        self.noise.check(self.steps)

    def actions(self) -> int:
        """Trained transitions of a row, A."""
        return int(
            trained_subset(self.noise.trained_steps(self.steps), fraction=self.train_fraction, generator=_any()).numel()
        )

    def describe(self, policy: FlowPolicyConfig, *, rows: int, needs_reference: bool, world: int) -> list[str]:
        """Network calls of a step and an estimate of memory, in words; loads no model."""
        guided = policy.model.network_rows(policy.guidance)
        sigma_S1 = self.schedule(
            self.steps, image_tokens=1024
        )  # a compressed tail changes their number, not their values
        rollout_steps = self.solver.grid(sigma_S1, self.noise(self.steps, step=0, seed=0))[1].numel()
        calls = {"rollout": rows * rollout_steps, "training": rows * self.actions()}
        if needs_reference:
            calls["reference"] = rows * self.actions()
        words = " + ".join(f"{number * guided} {name}" for name, number in calls.items())
        notes = ["guidance counts twice"] * (guided == 2)
        notes += ["the first step's; the compressed tail shrinks as the window moves"] * (rollout_steps != self.steps)
        report = [f"network calls per step: {words}" + (f" ({'; '.join(notes)})" if notes else "")]
        return report + memory_lines(policy, self, rows=rows // world, needs_reference=needs_reference)

    def plan(self, policy: FlowPolicy, *, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """(sigma_S1, noise_level_S) of training step `step`, float32 on the CPU."""
        tokens = policy.family.image_tokens(policy.pipe, *policy.size(evaluation=False))
        sigma_S1 = self.schedule(self.steps, image_tokens=tokens)
        noise_level_S = self.noise(self.steps, step=step, seed=seed)
        return self.solver.grid(sigma_S1, noise_level_S)

    @torch.no_grad()
    def sample(
        self, policy: FlowPolicy, rows: Rows, *, step: int, seed: int, needs: frozenset[str]
    ) -> tuple[Rollout, Outputs]:
        """Samples with noise, keeping the transitions that are trained, and decodes the images.

        `needs`: the values the objective will ask for; the sampling velocity is stored only if one of them needs it.
        """
        sigma_S1, noise_level_S = self.plan(policy, step=step, seed=seed)
        size = policy.size(evaluation=False)
        condition, condition_N = encode_rows(policy, rows)
        noisy = torch.nonzero(trained_mask(noise_level_S, sigma_S1)).flatten()
        picked_NA = torch.stack([self._picked(noisy, rows, i, step=step, seed=seed) for i in range(len(rows))])
        parts, images = [], []
        for chunk in torch.arange(len(rows)).split(self.rollout_batch):
            part, latents = self._trajectory(
                policy, rows.take(chunk), condition, condition_N[chunk], sigma_S1, noise_level_S, picked_NA[chunk],
                step=step, seed=seed, size=size, keep_velocity="mean_shift_old" in needs,
            )  # fmt: skip
            parts.append(part)
            images.append(policy.decode(latents, size=size))
        joined = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        behaviour_NA = joined.pop("behaviour_NA")
        record = FlowRecord(
            **joined,
            step_NA=picked_NA.to(policy.device),
            sigma_S1=sigma_S1.to(policy.device),
            noise_level_S=noise_level_S.to(policy.device),
            condition=condition,
            condition_N=condition_N,
            size=size,
            guidance=policy.config.guidance,
            kernel=self.kernel,
            logprob=self.logprob,
        )
        rollout = Rollout(
            prompts=rows.prompts,
            prompt_N=rows.prompt_N,
            sample_N=rows.sample_N,
            behaviour_NA=behaviour_NA,
            mask_NA=torch.ones_like(behaviour_NA, dtype=torch.bool),
            record=record,
        )
        return rollout, Outputs(items=torch.cat(images), row_M=torch.arange(len(rows)))

    def _picked(self, noisy: Tensor, rows: Rows, i: int, *, step: int, seed: int) -> Tensor:
        """The denoising steps that row i trains, [A]."""
        if self.train_fraction == 1:
            return noisy
        generator = stream(seed, "train_steps", step, rows.prompts[rows.prompt_N[i]].id, int(rows.sample_N[i]))
        return noisy[trained_subset(noisy.numel(), fraction=self.train_fraction, generator=generator)]

    def _trajectory(
        self,
        policy: FlowPolicy,
        rows: Rows,
        condition: Mapping[str, Tensor],
        condition_n: Tensor,
        sigma_S1: Tensor,
        noise_level_S: Tensor,
        picked_na: Tensor,
        *,
        step: int,
        seed: int,
        size: tuple[int, int],
        keep_velocity: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Rows [n] through all steps: the stored transitions and the final latents [n, ...]."""
        x = initial_noise(policy, rows, seed=seed, step=step, size=size, shared=self.init_noise == "shared")
        generators = [stream(seed, "sde", step, rows.prompts[p].id, s) for p, s in _keys(rows)]
        rows_condition = {k: v[condition_n] for k, v in condition.items()}
        picked_na = picked_na.to(policy.device)
        x_na = x.new_zeros(*picked_na.shape, *x.shape[1:])
        stored = {"x_NA": x_na, "next_NA": torch.zeros_like(x_na), "behaviour_NA": x.new_zeros(picked_na.shape)}
        if keep_velocity:
            stored["velocity_old_NA"] = torch.zeros_like(x_na)
        history: list[Tensor] = []
        for i, noise_level in enumerate(noise_level_S.tolist()):
            sigma, sigma_next = sigma_S1[i].to(x), sigma_S1[i + 1].to(x)
            velocity = self._network(policy, x, sigma, rows_condition, size=size, guidance=policy.config.guidance)
            if noise_level == 0:
                x_next = self.solver.step(x, velocity, sigma, sigma_next, history)
            else:
                mean, std = transition(self.kernel, x, velocity, sigma, sigma_next, noise_level_S[i])
                x_next = mean + std * _normal(generators, x)
                row, action = torch.nonzero(picked_na == i, as_tuple=True)
                if row.numel():
                    stored["x_NA"][row, action], stored["next_NA"][row, action] = x[row], x_next[row]
                    logprob_n = logprob_of(self.logprob, x_next, mean, std)
                    stored["behaviour_NA"][row, action] = logprob_n[row]
                    if keep_velocity:
                        stored["velocity_old_NA"][row, action] = velocity[row]
            history[:] = [sigma, x - sigma * velocity]
            x = x_next
        return stored, x

    @torch.no_grad()
    def latents(self, policy: FlowPolicy, rows: Rows, *, seed: int) -> Tensor:
        """Deterministic samples (Euler, `eval_steps`) from fixed noise keyed by prompt and sample, [N, ...]."""
        size = policy.size(evaluation=True)
        tokens = policy.family.image_tokens(policy.pipe, *size)
        sigma_S1 = self.schedule(self.eval_steps, image_tokens=tokens)
        condition, condition_N = encode_rows(policy, rows)
        finished = []
        for chunk in torch.arange(len(rows)).split(self.rollout_batch):
            x = self.evaluation_noise(policy, rows.take(chunk), seed=seed)
            here = {k: v[condition_N[chunk]] for k, v in condition.items()}
            for sigma, sigma_next in zip(sigma_S1[:-1].to(x), sigma_S1[1:].to(x), strict=True):
                velocity = self._network(policy, x, sigma, here, size=size, guidance=policy.config.guidance)
                x = Euler().step(x, velocity, sigma, sigma_next, [])
            finished.append(x)
        return torch.cat(finished)

    def evaluation_noise(self, policy: FlowPolicy, rows: Rows, *, seed: int) -> Tensor:
        """The initial latents that `latents` starts from, [N, ...]."""
        return initial_noise(policy, rows, seed=seed, step="eval", size=policy.size(evaluation=True), shared=False)

    def render(self, policy: FlowPolicy, rows: Rows, *, seed: int) -> Tensor:
        """Deterministic images for evaluation, uint8 [N, 3, H, W]."""
        return policy.decode(self.latents(policy, rows, seed=seed), size=policy.size(evaluation=True))

    def _network(
        self,
        policy: FlowPolicy,
        x: Tensor,
        sigma: Tensor,
        condition: Mapping[str, Tensor],
        *,
        size: tuple[int, int],
        guidance: float,
    ) -> Tensor:
        with phase("rollout_network"):
            count("rollout_calls", x.shape[0] * policy.family.network_rows(guidance))
            return policy.velocity(x, sigma.expand(x.shape[0]), condition, size=size, guidance=guidance)


def encode_rows(policy: FlowPolicy, rows: Rows) -> tuple[dict[str, Tensor], Tensor]:
    """The condition of each distinct prompt of the rows, and which one each row has, [N]."""
    prompt_C, condition_N = torch.unique(rows.prompt_N, return_inverse=True)
    return policy.encode([rows.prompts[p] for p in prompt_C.tolist()]), condition_N.to(policy.device)


def initial_noise(
    policy: FlowPolicy, rows: Rows, *, seed: int, step: int | str, size: tuple[int, int], shared: bool
) -> Tensor:
    """Standard normal latents [n, ...] of named streams, the same whatever the device, rank or batch."""
    shape = policy.family.latent_shape(policy.pipe, *size)
    noise = [
        torch.randn(shape, generator=stream(seed, "init_noise", step, rows.prompts[p].id, 0 if shared else s))
        for p, s in _keys(rows)
    ]
    return torch.stack(noise).to(policy.device, policy.math_dtype)


def _keys(rows: Rows) -> list[tuple[int, int]]:
    return list(zip(rows.prompt_N.tolist(), rows.sample_N.tolist(), strict=True))


def _normal(generators: list[torch.Generator], x: Tensor) -> Tensor:
    """One standard normal latent from each row's own stream."""
    return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)


def _any() -> torch.Generator:
    return torch.Generator().manual_seed(0)
