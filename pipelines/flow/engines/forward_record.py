"""What a forward-process rollout keeps: finished samples and the (t, noise) draws on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.models.family import Size, joined


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
    size: Size
    guidance: float
    beta: float
    velocity_NA: Mapping[str, Tensor] = field(default_factory=dict)
    """Velocities of other policies at the same states: "old" sampled, "ref", "ema"."""

    def states(self, index: Tensor) -> Tensor:
        """Every action starts from a state of its own."""
        return index

    def sigma_of(self, state: Tensor) -> Tensor:
        """[n]"""
        return self.sigma_NA.flatten()[state]

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
            condition=joined([p.condition for p in parts]),
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
