"""One denoising step as a Gaussian policy, for every stochastic sampler in use.

Convention: x_σ = (1 - σ)·x0 + σ·e, the network predicts v = e - x0, and sampling goes from σ = 1 down to σ' < σ.
With dt = σ' - σ < 0 and δ = -dt. Each kernel gives (mean, std) of x' given x; an action is x' = mean + std·ε.
σ, σ' and the noise level are scalars, one value per row [N], or anything that broadcasts over x [N, ...]; computed in
float32, or float64 if an argument is.

    x̂0 = x - σ·v   clean estimate          x̂1 = x + (1 - σ)·v   noise estimate          score = -x̂1/σ
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[..., tuple[Tensor, Tensor]]
"""(x, velocity, sigma, sigma_next, noise_level) -> (mean, std)."""


def _wide(x: Tensor, *others: Tensor | float) -> list[Tensor]:
    """All arguments on x's device in float32, or float64 if one of them is; one value per row broadcasts over x."""
    x = torch.as_tensor(x)
    tensors = [x, *(v for v in others if isinstance(v, Tensor))]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    wide = [
        torch.as_tensor(v).to(device=x.device, dtype=dtype) if isinstance(v, Tensor) else x.new_tensor(v, dtype=dtype)
        for v in others
    ]
    per_row = (-1, *([1] * (x.dim() - 1)))
    return [x.to(dtype), *(v.view(per_row) if v.dim() == 1 and x.dim() > 1 else v for v in wide)]


def _mean_per_row(value: Tensor) -> Tensor:
    """[N, ...] -> [N]."""
    return value.reshape(value.shape[0] if value.dim() else 1, -1).mean(1)


def ode(x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor]:
    """Euler: mean = x + v·dt, std = 0. Equals first-order DPM-Solver++ for rectified flow. `noise_level` is not used."""
    x, velocity, sigma, sigma_next = _wide(x, velocity, sigma, sigma_next)
    return x + velocity * (sigma_next - sigma), torch.zeros_like(sigma * sigma_next)


def sde_step(x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The reverse SDE with diffusion coefficient g: mean = x + v·dt - ½g²·score·dt, std = g·√δ.

    Flow-SDE, Dance-SDE and DenseGRPO's ψ-SDE are this with different g.
    """
    x, velocity, sigma, sigma_next, g = _wide(x, velocity, sigma, sigma_next, g)
    dt = sigma_next - sigma
    score = -(x + (1 - sigma) * velocity) / sigma
    return x + velocity * dt - 0.5 * g**2 * score * dt, g * torch.sqrt(-dt)


def flow_sde(
    x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor
) -> tuple[Tensor, Tensor]:
    """Flow-GRPO's SDE: g = a·√(σ/(1 - σ)) with a = `noise_level`.

    At σ = 1 the denominator is 1 - σ', so the first step's std is exactly a.

    Source: arXiv:2505.05470 (Flow-GRPO), eq. 9 and released code; papers that print √((1-σ)/σ) count time backwards.
    """
    x, velocity, sigma, sigma_next, noise_level = _wide(x, velocity, sigma, sigma_next, noise_level)
    room = torch.where(sigma >= 1, 1 - sigma_next, 1 - sigma)
    return sde_step(x, velocity, sigma, sigma_next, noise_level * torch.sqrt(sigma / room))


def dance_sde(
    x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor
) -> tuple[Tensor, Tensor]:
    """DanceGRPO's SDE: constant g = η = `noise_level`, finite everywhere.

    Source: arXiv:2505.07818 (DanceGRPO), eq. 5.
    """
    return sde_step(x, velocity, sigma, sigma_next, noise_level)


def cps(x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients-preserving sampling: mean = (1-σ')·x̂0 + σ'·cos(ηπ/2)·x̂1, std = σ'·sin(ηπ/2).

    The last step (σ' = 0) has std 0. The cosine avoids the negative radicand of √(σ'² - std²).

    Source: arXiv:2509.05952 (Flow-CPS), eq. 12.
    """
    x, velocity, sigma, sigma_next, noise_level = _wide(x, velocity, sigma, sigma_next, noise_level)
    angle = noise_level * (math.pi / 2)
    clean, noise = x - sigma * velocity, x + (1 - sigma) * velocity
    return (1 - sigma_next) * clean + sigma_next * torch.cos(angle) * noise, sigma_next * torch.sin(angle)


def ddim(x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor]:
    """The flow form of DDIM with η = `noise_level`; η = 1 is the maximum-variance reverse SDE (DDPM).

    std = η·σ'·√(1 - ((1-σ)σ'/((1-σ')σ))²), mean = (1-σ')·x̂0 + √(σ'² - std²)·x̂1.

    Source: arXiv:2509.16117 (DiffusionNFT), appendix; arXiv:2010.02502, eq. 12.
    """
    x, velocity, sigma, sigma_next, noise_level = _wide(x, velocity, sigma, sigma_next, noise_level)
    kept = (1 - sigma) * sigma_next / ((1 - sigma_next) * sigma)
    std = noise_level * sigma_next * torch.sqrt((1 - kept**2).clamp_min(0))
    clean, noise = x - sigma * velocity, x + (1 - sigma) * velocity
    return (1 - sigma_next) * clean + torch.sqrt((sigma_next**2 - std**2).clamp_min(0)) * noise, std


def gaussian_logprob(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of N(mean, std²) at `x_next`, the **mean** over all non-batch dimensions, [N].

    float32, or float64 if `mean` is. `x_next` is data: it is detached. `std` broadcasts and is > 0.

    Source: arXiv:2505.05470, released code; every GRPO release for flow models takes the mean, not the sum.
    """
    x_next, mean, std = _wide(x_next.detach(), mean, std)
    squared = ((x_next - mean) / std) ** 2
    density = -0.5 * squared - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return _mean_per_row(density)


def cps_logprob(x_next: Tensor, mean: Tensor) -> Tensor:
    """The published Flow-CPS form: -mean((x' - mean)²) over all non-batch dimensions, [N]; no variance, no constants.

    Source: arXiv:2509.05952, released code. Gradients are weighted by m·n instead of m/n, so clip ranges shrink to 1e-5.
    """
    x_next, mean = _wide(x_next.detach(), mean)
    return -_mean_per_row((x_next - mean) ** 2)
