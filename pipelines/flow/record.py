"""What a flow rollout keeps so that its stochastic steps can be replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.kernels import Kernel, cps_logprob, gaussian_logprob

Logprob = Literal["gaussian", "cps"]


@dataclass(frozen=True)
class FlowRecord:
    """Transitions x → x' of the trained steps; `...` are the axes of one latent."""

    x_NA: Tensor
    """[N, A, ...] latents before the step, float32."""
    next_NA: Tensor
    """[N, A, ...] latents after it."""
    step_NA: Tensor
    """[N, A] int64, the denoising step of an action."""
    sigma_S1: Tensor
    noise_level_S: Tensor
    condition: Mapping[str, Tensor]
    """[C, ...] each: what the network saw, one entry per prompt on this rank."""
    condition_N: Tensor
    """[N] int64, index into the condition."""
    size: tuple[int, int]
    """Height and width in pixels."""
    guidance: float
    kernel: Kernel
    logprob: Logprob
    velocity_old_NA: Tensor | None = None
    """[N, A, ...] velocity of the policy that sampled, where an objective needs it."""
    velocity_ref_NA: Tensor | None = None
    """[N, A, ...] velocity of the reference policy."""

    def take(self, rows: Tensor) -> FlowRecord:
        names = ("x_NA", "next_NA", "step_NA", "condition_N", "velocity_old_NA", "velocity_ref_NA")
        return replace(self, **{k: getattr(self, k)[rows] for k in names if getattr(self, k) is not None})

    def sigmas(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(σ, σ', noise level) of the steps, each in the shape of `step`."""
        return self.sigma_S1[step], self.sigma_S1[step + 1], self.noise_level_S[step]


def transition(
    kernel: Kernel, x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor
) -> tuple[Tensor, Tensor]:
    """The kernel on a batch with one σ per row: the only transition function, for sampling and for training."""
    return kernel(x, velocity, *(v.to(x.dtype) for v in (sigma, sigma_next, noise_level)))


def logprob_of(form: Logprob, x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """[n]; "gaussian": mean log-density; "cps": the published variance-free form."""
    return gaussian_logprob(x_next, mean, std) if form == "gaussian" else cps_logprob(x_next, mean)


def flow_values(
    record: FlowRecord,
    *,
    x: Tensor,
    x_next: Tensor,
    velocity: Tensor,
    step: Tensor,
    velocity_old: Tensor | None,
    velocity_ref: Tensor | None,
    needs: frozenset[str],
) -> dict[str, Tensor]:
    """The named values of n transitions, [n] each; see `PROVIDES`."""
    sigma, sigma_next, noise_level = record.sigmas(step)
    mean, std = transition(record.kernel, x, velocity, sigma, sigma_next, noise_level)
    values = {
        "logprobs": logprob_of(record.logprob, x_next, mean, std),
        "std": std.flatten(),
        "dt": (sigma - sigma_next).to(std.dtype),
    }

    def mean_shift(other: Tensor) -> Tensor:
        # Kernels are linear in (x, v): the shift of the mean is the kernel at x = 0, without cancellation.
        shift, _ = transition(record.kernel, torch.zeros_like(x), velocity - other, sigma, sigma_next, noise_level)
        return (shift**2).flatten(1).mean(1)

    if record.logprob == "gaussian":
        values["gaussian_logprobs"] = values["logprobs"]
    if velocity_old is not None and "mean_shift_old" in needs:
        values["mean_shift_old"] = mean_shift(velocity_old)
    if velocity_ref is not None:
        if "mean_shift_ref" in needs:
            values["mean_shift_ref"] = mean_shift(velocity_ref)
        if "velocity_shift_ref" in needs:
            values["velocity_shift_ref"] = ((velocity - velocity_ref) ** 2).flatten(1).mean(1)
        if "ref_logprobs" in needs:
            ref_mean, _ = transition(record.kernel, x, velocity_ref, sigma, sigma_next, noise_level)
            values["ref_logprobs"] = logprob_of(record.logprob, x_next, ref_mean, std)
    return values


PROVIDES = frozenset(
    {
        "logprobs",
        "gaussian_logprobs",
        "std",
        "dt",
        "mean_shift_old",
        "mean_shift_ref",
        "velocity_shift_ref",
        "ref_logprobs",
    }
)
"""logprobs: of the step, in the engine's form; gaussian_logprobs: the same, where that form is the Gaussian density. std: its noise. dt: δ = σ - σ' > 0. mean_shift_*: mean over elements of (μ - μ_*)².
velocity_shift_ref: mean of (v - v_ref)². ref_logprobs: under the reference."""
