"""What every sampler of a flow policy does: conditions, named noise, counted network calls, the deterministic sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.conditions import without_unreadable
from grpo_mm.pipelines.flow.models.family import Size
from grpo_mm.pipelines.flow.own_schedule import (
    grid_of,
    in_plain_diffusers,
    own_schedule,
    tell_of_a_stand_in,
    tell_of_another_grid,
)
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.pipelines.flow.schedule import DiffusersSd3, Schedule
from grpo_mm.pipelines.flow.solver import Euler
from grpo_mm.processes.clock import count, phase
from grpo_mm.processes.progress import report
from grpo_mm.processes.rng import stream
from grpo_mm.types import Clips, Pictures, Prompt, Rows

EULER = Euler()


def encode_rows(policy: FlowPolicy, rows: Rows, *, size: Size | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """The condition of each distinct prompt of the rows, to draw pictures of `size` (as `encode`), and which one each row has, [N]."""
    prompt_C, condition_N = torch.unique(rows.prompt_N, return_inverse=True)
    return policy.encode([rows.prompts[p] for p in prompt_C.tolist()], size=size), condition_N.to(policy.device)


def initial_noise(
    policy: FlowPolicy, keys: Sequence[tuple[Prompt, int]], *, seed: int, step: int | str, size: Size
) -> Tensor:
    """A standard normal latent for each (prompt, number), [n, ...]: the same whatever the device, rank or batch."""
    shape = policy.family.latent_shape(policy.pipe, *size)
    noise = [torch.randn(shape, generator=stream(seed, "init_noise", step, prompt.id, i)) for prompt, i in keys]
    return torch.stack(noise).to(policy.device, policy.math_dtype)


def sampling_velocity(
    policy: FlowPolicy, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor], *, size: Size
) -> tuple[Tensor, Tensor | None]:
    """`policy.velocity_and_half` at latents [n, ...] and σ [n], timed and counted as a rollout call."""
    guidance = policy.config.guidance
    with phase("rollout_network"):
        count("rollout_calls", x.shape[0] * policy.family.network_rows(guidance))
        return policy.velocity_and_half(x, sigma, condition, size=size, guidance=guidance)


class OdeSampler:
    """The deterministic sampler of evaluation from fixed noise, for engines with a schedule and `eval_steps`: Euler, or what the
    checkpoint's own scheduler does where its grid is followed."""

    schedule: Any
    """None: the checkpoint's own, which is known once its policy is loaded."""
    eval_steps: int
    rollout_batch: int

    @property
    def nominal_schedule(self) -> Schedule:
        """What counts are rehearsed on before a model is loaded: σ may still change, the number of steps does not."""
        return DiffusersSd3() if self.schedule is None else self.schedule

    def on_grid_of(self, policy: FlowPolicy) -> Self:
        """This engine with a schedule: the checkpoint's where the config names none. Says once if the two differ.

        Raises:
            ConfigError: the config names none, and the checkpoint's scheduler cannot be followed.
        """
        if self.schedule is None:
            policy.grid_is_told = policy.grid_is_told or tell_of_a_stand_in(policy.pipe)
            return replace(self, schedule=own_schedule(policy.pipe, **grid_of(policy.family)))  # type: ignore[type-var]
        if not policy.grid_is_told:
            policy.grid_is_told = True
            tokens = policy.family.image_tokens(policy.pipe, *policy.size(evaluation=True))
            tell_of_another_grid(
                self.schedule, policy.pipe, steps=self.eval_steps, image_tokens=tokens, **grid_of(policy.family)
            )
        return self

    @torch.no_grad()
    def latents(self, policy: FlowPolicy, rows: Rows, *, seed: int) -> Tensor:
        """Samples of the rows at the evaluation size, [N, ...]."""
        size = policy.size(evaluation=True)
        schedule = self.on_grid_of(policy).schedule
        grid, solver = getattr(schedule, "exact", schedule), getattr(schedule, "solver", EULER)
        sigma_S1 = grid(self.eval_steps, image_tokens=policy.family.image_tokens(policy.pipe, *size))
        timed = getattr(schedule, "timed", lambda sigma: sigma)
        condition, condition_N = encode_rows(policy, rows, size=size)
        finished = []
        for chunk in torch.arange(len(rows)).split(self.rollout_batch):
            x = self.evaluation_noise(policy, rows.take(chunk), seed=seed)
            here = {k: v[condition_N[chunk]] for k, v in condition.items()}
            history: list[Tensor] = []
            for sigma, sigma_next in zip(sigma_S1[:-1].to(x), sigma_S1[1:].to(x), strict=True):
                velocity, _ = sampling_velocity(policy, x, timed(sigma).expand(x.shape[0]), here, size=size)
                before, x = x, solver.step(x, velocity, sigma, sigma_next, history)
                history[:] = [sigma, before - sigma * velocity]
            finished.append(x)
            report("clips" if policy.config.draws_clips else "pictures", int(chunk[-1]) + 1, len(rows))
        return torch.cat(finished)

    def evaluation_noise(self, policy: FlowPolicy, rows: Rows, *, seed: int) -> Tensor:
        """The initial latents that `latents` starts from, [N, ...], keyed by prompt and sample."""
        keys = [(rows.prompts[p], s) for p, s in zip(rows.prompt_N.tolist(), rows.sample_N.tolist(), strict=True)]
        return initial_noise(policy, keys, seed=seed, step="eval", size=policy.size(evaluation=True))

    def usage(self, policy: FlowPolicy) -> dict[str, str]:
        """For the model card: what loads the product into plain diffusers and draws as evaluation does."""
        schedule, size = self.on_grid_of(policy).schedule, policy.size(evaluation=True)
        settings, sigmas = in_plain_diffusers(
            schedule, policy.pipe, **grid_of(policy.family), steps=self.eval_steps,
            image_tokens=policy.family.image_tokens(policy.pipe, *size),
        )  # fmt: skip
        return policy.usage(sigmas=sigmas, scheduler=settings, steps=self.eval_steps) | {
            "drawn": self._in_words(policy, schedule)
        }

    def _in_words(self, policy: FlowPolicy, schedule: Schedule) -> str:
        """How evaluation draws: steps, guidance, shift, size."""
        *frames, height, width = size = policy.size(evaluation=True)
        tokens = policy.family.image_tokens(policy.pipe, *size)
        words = getattr(schedule, "in_words", None)
        shift = words(image_tokens=tokens) if words else "noise levels as the code lists them"
        what = "".join(f"Clips of {n} frames at {policy.config.frame_rate:g} a second," for n in frames) or "Pictures"
        return (
            f"{what} of {width} × {height} pixels are drawn in {self.eval_steps} steps of Euler's method, without noise between "
            f"them; guidance {policy.config.guidance:g}; {shift}."
        )

    def render(self, policy: FlowPolicy, rows: Rows, *, seed: int) -> Tensor | Pictures | Clips:
        """Pictures of the rows for evaluation, uint8 [N, 3, H, W]; `Pictures` where some came to nothing; or clips."""
        drawn = policy.decode(self.latents(policy, rows, seed=seed), size=policy.size(evaluation=True))
        return without_unreadable(drawn, [rows.prompts[p] for p in rows.prompt_N.tolist()], policy.unreadable)
