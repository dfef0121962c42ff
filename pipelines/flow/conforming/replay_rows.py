"""Every noisy kernel on latents of this family: what was drawn has the noise it should, and the trainer says of it what the sampler said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from grpo_mm.findings import Finding, row
from grpo_mm.pipelines.flow import kernels
from grpo_mm.pipelines.flow.conforming.picture_rows import rows_of
from grpo_mm.pipelines.flow.conforming.plain import Drawing
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.noise import AllSteps
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.pipelines.flow.schedule import Shifted
from grpo_mm.types import Rollout

KERNELS: tuple[tuple[Callable, float], ...] = (
    (kernels.flow_sde, 0.7), (kernels.dance_sde, 0.3), (kernels.cps, 0.8), (kernels.ddim, 1.0),
)  # fmt: skip
"""With a usual noise level each."""
APART = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float64: 1e-9}
"""Largest difference of a log-probability, a mean over latent elements."""
STEPS, GROUP = 3, 2
SURE = 6.0
"""Standard deviations that a mean of squares may be off."""


def replay_rows(policy: FlowPolicy, how: Drawing) -> Iterator[Finding]:
    """Two rows a kernel, from rollouts of three steps on a grid that is the same for all families."""
    policy.grid_is_told = True  # no rollout of a run, so nobody needs to be told
    for kernel, level in KERNELS:
        engine = FlowEngine(steps=STEPS, schedule=Shifted(), kernel=kernel, noise=AllSteps(level=level))
        rollout, _ = engine.sample(policy, rows_of(how, GROUP), step=0, seed=0, needs=frozenset({"logprobs"}))
        mask_NA = rollout.mask_NA.cpu()
        drawn_NA = rollout.behaviour_NA.double().cpu()
        number = rollout.record.latent_V[0].numel()
        # log-density = -½·mean(ε²) - ln std - ½·ln 2π
        square_NA = -2 * (drawn_NA + rollout.record.std().double().cpu().log() + 0.5 * math.log(2 * math.pi))
        off = float((square_NA - 1).where(mask_NA, 0).abs().max())
        words = f"mean square of what was drawn, less 1, of {number} numbers a step"
        yield row(f"{kernel.__name__}: noise of a step", off, SURE * math.sqrt(2 / number), words)
        apart = (replayed(policy, rollout) - drawn_NA).abs().where(mask_NA, 0)
        words = f"log-probability, rollout against replay, {int(mask_NA.sum())} steps"
        yield row(f"{kernel.__name__}: replay", float(apart.max()), APART[policy.dtype], words)


@torch.no_grad()
def replayed(policy: FlowPolicy, rollout: Rollout) -> Tensor:
    """Log-probabilities by the trainer, [N, A] on the CPU; 0 where nothing is trained."""
    found_NA = torch.zeros(rollout.behaviour_NA.shape, dtype=torch.float64)
    plan = policy.plan(rollout, rollout.mask_NA)
    for index, values in policy.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=False):
        found_NA.view(-1)[index.cpu()] = values["logprobs"].double().cpu()
    return found_NA
