"""Noise levels σ_0 = 1 > … > σ_S = 0 as data, float32: rollout, training and evaluation read the same vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """`image_tokens` is the length of the packed latent sequence, which resolution-dependent shifts need."""

    def __call__(self, steps: int, *, image_tokens: int) -> Tensor: ...


def shift_sigmas(u: Tensor, shift: float) -> Tensor:
    """The static shift s·u/(1 + (s - 1)·u), any shape."""
    return shift * u / (1 + (shift - 1) * u)


@dataclass(frozen=True)
class Shifted:
    """The plain grid: the shift of linspace(1, 0, S + 1).

    Source: DanceGRPO, MixGRPO and Pref-GRPO scripts: shift 3 for FLUX, 5 for HunyuanVideo.
    """

    shift: float = 3.0

    def in_diffusers(self, steps: int) -> tuple[dict[str, Any], float]:
        """(settings of a FlowMatchEulerDiscreteScheduler, last u): it makes this grid of linspace(1, last, S)."""
        return {"shift": self.shift}, 1 / steps

    def in_words(self, *, image_tokens: int) -> str:
        return f"shift {self.shift:g}"

    def __call__(self, steps: int, *, image_tokens: int) -> Tensor:
        return shift_sigmas(torch.linspace(1, 0, steps + 1, dtype=torch.float64), self.shift).float()


@dataclass(frozen=True)
class FluxShift:
    """The diffusers FLUX grid: linspace(1, 1/S, S) and 0, under a shift exp(µ) linear in the number of image tokens.

    σ = e^µ / (e^µ + 1/u - 1).
    """

    base_tokens: int = 256
    max_tokens: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def in_diffusers(self, steps: int) -> tuple[dict[str, Any], float]:
        """As of `Shifted`."""
        lengths = {"base_image_seq_len": self.base_tokens, "max_image_seq_len": self.max_tokens}
        shifts = {"base_shift": self.base_shift, "max_shift": self.max_shift}
        return {"use_dynamic_shifting": True, **shifts, **lengths}, 1 / steps

    def in_words(self, *, image_tokens: int) -> str:
        return f"shift {math.exp(self._mu(image_tokens)):.4g}, which depends on the size of the picture"

    def _mu(self, image_tokens: int) -> float:
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (image_tokens - self.base_tokens)

    def __call__(self, steps: int, *, image_tokens: int) -> Tensor:
        mu = self._mu(image_tokens)
        u = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
        sigma = math.exp(mu) / (math.exp(mu) + (1 / u - 1))
        return torch.cat([sigma, sigma.new_zeros(1)]).float()


@dataclass(frozen=True)
class DiffusersSd3:
    """The grid of diffusers' SD3 pipeline, which differs from the plain one.

    The scheduler keeps an already shifted smallest σ, spaces S values linearly from 1 down to it, shifts again and
    appends 0; so the last step is nearly null (.0089 → 0 at shift 3).
    """

    shift: float = 3.0
    train_timesteps: int = 1000

    def in_diffusers(self, steps: int) -> tuple[dict[str, Any], float]:
        """As of `Shifted`."""
        smallest = shift_sigmas(torch.tensor(1 / self.train_timesteps, dtype=torch.float64), self.shift)
        return {"shift": self.shift}, float(smallest)

    def in_words(self, *, image_tokens: int) -> str:
        return f"shift {self.shift:g}, spaced as diffusers' SD3 pipeline spaces it"

    def __call__(self, steps: int, *, image_tokens: int) -> Tensor:
        _, smallest = self.in_diffusers(steps)
        u = torch.linspace(1, smallest, steps, dtype=torch.float64)
        return torch.cat([shift_sigmas(u, self.shift), u.new_zeros(1)]).float()
