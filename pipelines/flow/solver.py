"""Deterministic steps between and after the noisy ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.schedule import shift_sigmas


class Solver(Protocol):
    """A solver may keep what it needs of earlier steps in `history`, a plain list that the engine hands around."""

    def grid(self, sigma_S1: Tensor, noise_level_S: Tensor) -> tuple[Tensor, Tensor]:
        """The schedule it wants after the last noisy step: (sigma_S1, noise_level_S), possibly shorter."""
        ...

    def step(self, x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, history: list[Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Euler:
    """x' = x + v·dt."""

    def grid(self, sigma_S1: Tensor, noise_level_S: Tensor) -> tuple[Tensor, Tensor]:
        return sigma_S1, noise_level_S

    def step(self, x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, history: list[Tensor]) -> Tensor:
        return x + velocity * (sigma_next - sigma)


def dpmpp_2m(
    x: Tensor,
    clean: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    clean_before: Tensor | None,
    sigma_before: Tensor | None,
) -> Tensor:
    """One DPM-Solver++ 2M step (midpoint form) for rectified flow.

    With λ(σ) = ln((1-σ)/σ), h = λ(σ')-λ(σ), r0 = (λ(σ)-λ(σ_before))/h and D1 = (x̂0 - x̂0_before)/r0:
    x' = (σ'/σ)·x - (1-σ')·(e^{-h} - 1)·(x̂0 + ½·D1). First order without history or where λ(σ_before) = -∞; x̂0 at σ' = 0.

    Source: arXiv:2211.01095, algorithm 2; arXiv:2507.21802 (MixGRPO-Flash).
    """
    if sigma_next == 0:
        return clean
    if sigma >= 1:  # λ(1) = -∞: the first-order formula's limit, which is the Euler step
        return (1 - sigma_next) * clean + sigma_next * x
    h = _log_snr(sigma_next) - _log_snr(sigma)
    target = clean
    if clean_before is not None and sigma_before is not None and sigma_before < 1:
        r0 = (_log_snr(sigma) - _log_snr(sigma_before)) / h
        target = clean + 0.5 * (clean - clean_before) / r0
    return (sigma_next / sigma) * x - (1 - sigma_next) * torch.expm1(-h) * target


def _log_snr(sigma: Tensor) -> Tensor:
    return torch.log((1 - sigma) / sigma)


@dataclass(frozen=True)
class DpmSolverPP:
    """DPM-Solver++ 2M outside the noise window, with the steps after the window cut to `keep_ratio` of their number.

    Only steps after the window are compressed; compressing before it breaks training (arXiv:2507.21802, section 3.3).
    The new grid ends at σ = 0, where the released code may stop above it: keep 1 step or more.
    The clean estimates of noisy steps feed the history too.
    """

    keep_ratio: float = 1.0
    """1: no compression. MixGRPO-Flash .4, Flash* .2."""
    shift: float = 3.0
    """The shift of the plain grid that the compressed tail is spaced on."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ConfigError(f"dpmpp: keep_ratio = {self.keep_ratio}; wanted a share in (0, 1].")

    def grid(self, sigma_S1: Tensor, noise_level_S: Tensor) -> tuple[Tensor, Tensor]:
        noisy = torch.nonzero(noise_level_S > 0).flatten()
        first = int(noisy[-1]) + 1 if noisy.numel() else 0
        tail = noise_level_S.shape[0] - first
        if self.keep_ratio == 1 or first == 0 or tail == 0:
            return sigma_S1, noise_level_S
        steps = max(1, int(tail * self.keep_ratio))
        sigma = float(sigma_S1[first])
        u_first = sigma / (self.shift - (self.shift - 1) * sigma)  # the inverse of shift_sigmas
        tail_sigma = shift_sigmas(torch.linspace(u_first, 0, steps + 1, dtype=torch.float64), self.shift).float()
        return (
            torch.cat([sigma_S1[: first + 1], tail_sigma[1:]]),
            torch.cat([noise_level_S[:first], noise_level_S.new_zeros(steps)]),
        )

    def step(self, x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, history: list[Tensor]) -> Tensor:
        """`history` holds [σ, x̂0] of the step before, or nothing."""
        clean = x - sigma * velocity
        before = history[-2:] or [None, None]
        return dpmpp_2m(x, clean, sigma, sigma_next, before[1], before[0])
