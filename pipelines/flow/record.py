"""What a flow rollout keeps so that its stochastic steps can be replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.kernels import Kernel, cps_logprob, gaussian_logprob
from grpo_mm.pipelines.flow.models.family import Size, joined

Logprob = Literal["gaussian", "cps"]


@dataclass(frozen=True)
class Half:
    """What the network that sampled says of the empty text, for a policy that takes it for a constant."""

    of_none_V: Tensor
    """[V, ...] where an action starts."""
    weights: tuple[int, str]
    """Which weights said it, as `Snapshots.which`."""


@dataclass(frozen=True)
class FlowRecord:
    """Latents, and the actions between them; `...` are the axes of one latent. What several actions start from is one node."""

    latent_V: Tensor
    """[V, ...] latents that trained actions start from or lead to, float32."""
    level_V: Tensor
    """[V] int64, index into `sigma_S1`."""
    condition_V: Tensor
    """[V] int64, index into the condition."""
    from_NA: Tensor
    """[N, A] int64, the node an action starts from."""
    to_NA: Tensor
    """[N, A] int64, the node it leads to."""
    noise_level_NA: Tensor
    sigma_S1: Tensor
    condition: Mapping[str, Tensor]
    """[C, ...] each: what the network saw, one entry per prompt on this rank."""
    size: Size
    """What was drawn."""
    guidance: float
    kernel: Kernel
    logprob: Logprob
    velocity_old_V: Tensor | None = None
    """[V, ...] velocity of the policy that sampled, where an objective needs it and an action starts."""
    velocity_ref_V: Tensor | None = None
    """[V, ...] velocity of the reference policy."""
    half: Half | None = None

    @property
    def x_NA(self) -> Tensor:
        """[N, A, ...] latents before each action, a copy."""
        return self.latent_V[self.from_NA]

    @property
    def next_NA(self) -> Tensor:
        """[N, A, ...] latents after each action, a copy."""
        return self.latent_V[self.to_NA]

    @property
    def step_NA(self) -> Tensor:
        """[N, A] int64, the denoising step of each action."""
        return self.level_V[self.from_NA]

    def states(self, index: Tensor) -> Tensor:
        """The node that each flat position into [N · A] starts from: one forward serves all that share it."""
        return self.from_NA.flatten()[index]

    def sigma_of(self, node: Tensor) -> Tensor:
        """[n]"""
        return self.sigma_S1[self.level_V[node]]

    def network_input(self, node: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(latents [n, ...], σ [n], condition index [n]) of nodes [n]."""
        return self.latent_V[node], self.sigma_S1[self.level_V[node]], self.condition_V[node]

    def with_velocity(self, name: Literal["old", "ref"], node: Tensor, velocity: Tensor) -> FlowRecord:
        """The record with another policy's velocity at nodes [n]."""
        stored = torch.zeros_like(self.latent_V)
        stored[node] = velocity
        return replace(self, **{f"velocity_{name}_V": stored})

    def take(self, rows: Tensor) -> FlowRecord:
        """The rows named by an index tensor; nodes of the others are dropped."""
        names = ("from_NA", "to_NA", "noise_level_NA")
        picked = {name: getattr(self, name)[rows] for name in names}
        nodes, place = torch.unique(torch.cat([picked["from_NA"], picked["to_NA"]]), return_inverse=True)
        picked["from_NA"], picked["to_NA"] = place.chunk(2)
        names = ("latent_V", "level_V", "condition_V", "velocity_old_V", "velocity_ref_V")
        return replace(
            self,
            **picked,
            **{name: getattr(self, name)[nodes] for name in names if getattr(self, name) is not None},
            half=self.half and replace(self.half, of_none_V=self.half.of_none_V[nodes]),
        )

    def cat(self, others: Sequence[FlowRecord]) -> FlowRecord:
        """The rows of this record, then those of others from the same step."""
        parts = [self, *others]
        nodes = [sum(part.latent_V.shape[0] for part in parts[:i]) for i in range(len(parts))]
        size = [next(iter(part.condition.values())).shape[0] for part in parts]
        start = [sum(size[:i]) for i in range(len(parts))]
        names = ("latent_V", "level_V", "noise_level_NA", "velocity_old_V", "velocity_ref_V")
        return replace(
            self,
            **{n: torch.cat([getattr(p, n) for p in parts]) for n in names if getattr(self, n) is not None},
            half=_joined([p.half for p in parts]),
            from_NA=torch.cat([p.from_NA + n for p, n in zip(parts, nodes)]),
            to_NA=torch.cat([p.to_NA + n for p, n in zip(parts, nodes)]),
            condition_V=torch.cat([p.condition_V + n for p, n in zip(parts, start)]),
            condition=joined([p.condition for p in parts]),
        )

    def sigmas(self) -> tuple[Tensor, Tensor, Tensor]:
        """(σ, σ', noise level) of every action, [N, A] each."""
        from_NA, to_NA = self.level_V[self.from_NA], self.level_V[self.to_NA]
        return self.sigma_S1[from_NA], self.sigma_S1[to_NA], self.noise_level_NA

    def std(self) -> Tensor:
        """The noise of every action, [N, A]; it depends on σ and the noise level alone."""
        sigma, sigma_next, noise_level = (v.flatten() for v in self.sigmas())
        zero = torch.zeros_like(sigma)
        return transition(self.kernel, zero, zero, sigma, sigma_next, noise_level)[1].view(self.from_NA.shape)

    def values(self, index: Tensor, velocity: Tensor, needs: frozenset[str], mask_NA: Tensor) -> dict[str, Tensor]:
        """The named values at n flat positions, given the velocity where each starts, [n, ...]; see `PROVIDES`."""
        node, after = self.states(index), self.to_NA.flatten()[index]
        x, x_next = self.latent_V[node], self.latent_V[after]
        sigma, sigma_next, noise_level = (v.flatten()[index] for v in self.sigmas())
        mean, std = transition(self.kernel, x, velocity, sigma, sigma_next, noise_level)
        values = {
            "logprobs": logprob_of(self.logprob, x_next, mean, std),
            "std": std.flatten(),
            "dt": (sigma - sigma_next).to(std.dtype),
        }

        def mean_shift(other: Tensor) -> Tensor:
            # Kernels are linear in (x, v): the shift of the mean is the kernel at x = 0, without cancellation.
            shift, _ = transition(self.kernel, torch.zeros_like(x), velocity - other, sigma, sigma_next, noise_level)
            return (shift**2).flatten(1).mean(1)

        if self.logprob == "gaussian":
            values["gaussian_logprobs"] = values["logprobs"]
        if "relative_std" in needs:
            std_NA, trained_NA = self.std(), mask_NA.to(std.dtype)
            # Actions that are not trained may have no latents, hence no std.
            mean_N = std_NA.where(mask_NA, 0).sum(1) / trained_NA.sum(1).clamp_min(1)
            values["relative_std"] = (std_NA / mean_N[:, None].clamp_min(1e-12)).flatten()[index]
        if self.velocity_old_V is not None and "mean_shift_old" in needs:
            values["mean_shift_old"] = mean_shift(self.velocity_old_V[node])
        if self.velocity_ref_V is not None:
            velocity_ref = self.velocity_ref_V[node]
            if "mean_shift_ref" in needs:
                values["mean_shift_ref"] = mean_shift(velocity_ref)
            if "velocity_shift_ref" in needs:
                values["velocity_shift_ref"] = ((velocity - velocity_ref) ** 2).flatten(1).mean(1)
            if "ref_logprobs" in needs:
                ref_mean, _ = transition(self.kernel, x, velocity_ref, sigma, sigma_next, noise_level)
                values["ref_logprobs"] = logprob_of(self.logprob, x_next, ref_mean, std)
        return values


PROVIDES = frozenset(
    {
        "logprobs",
        "gaussian_logprobs",
        "std",
        "relative_std",
        "dt",
        "mean_shift_old",
        "mean_shift_ref",
        "velocity_shift_ref",
        "ref_logprobs",
    }
)
"""logprobs: of the step, in the engine's form; gaussian_logprobs: the same, where that form is the Gaussian density.
std: its noise; relative_std: that over its mean over the row's actions. dt: δ = σ - σ' > 0. mean_shift_*: mean over
elements of (μ - μ_*)². velocity_shift_ref: mean of (v - v_ref)². ref_logprobs: under the reference."""


FORWARD_PROVIDES = frozenset(
    {
        "nft_plus",
        "nft_minus",
        "beta",
        "matching_loss",
        "matching_loss_old",
        "sigma",
        "velocity_shift_ref",
        "velocity_shift_ema",
    }
)
"""What draws on finished samples give: nft_plus, nft_minus: self-normalised errors of the implicit policies, and their β;
matching_loss: mean of (v - (e - x0))², _old: of the policy that sampled; sigma: the noise level t of a draw."""


def _joined(parts: Sequence[Half | None]) -> Half | None:
    """None where not all of them were said by the same weights."""
    if any(part is None or part.weights != parts[0].weights for part in parts):
        return None
    return replace(parts[0], of_none_V=torch.cat([part.of_none_V for part in parts]))


def transition(
    kernel: Kernel, x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor
) -> tuple[Tensor, Tensor]:
    """The kernel on a batch with one σ per row: the only transition function, for sampling and for training."""
    return kernel(x, velocity, *(v.to(x.dtype) for v in (sigma, sigma_next, noise_level)))


def logprob_of(form: Logprob, x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """[n]; "gaussian": mean log-density; "cps": the published variance-free form."""
    return gaussian_logprob(x_next, mean, std) if form == "gaussian" else cps_logprob(x_next, mean)
