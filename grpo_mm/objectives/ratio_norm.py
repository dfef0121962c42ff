"""GRPO-Guard: a ratio whose mean is 1 at every denoising step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate, aggregate_weight
from grpo_mm.objectives.clipped_ratio import StepWeight, ratio_stats, step_weight, step_weight_needs, surrogate
from grpo_mm.types import Couples, Term, View


def ratio_norm(log_ratio: Tensor, mean_shift_old: Tensor, std: Tensor) -> Tensor:
    """The normalised log-ratio n·(log r + mean(Δμ²)/(2n²)) = mean(ε·Δμ), with n the step's noise `std`.

    Valid for every Gaussian kernel whose log-probability is the mean over latent elements.

    Args:
        log_ratio: any shape, logprob - old logprob.
        mean_shift_old: same shape, mean over latent elements of (μ - μ_old)².
        std: same shape, > 0.

    Source: arXiv:2510.22319 (GRPO-Guard), eq. 8; the identity holds for any kernel by completing the square.
    """
    return std * (log_ratio + mean_shift_old / (2 * std**2))


@dataclass(frozen=True)
class RatioNorm:
    """The clipped surrogate on the normalised ratio, with the loss of a step divided by δ.

    Source: arXiv:2510.22319 and its released code, which divides by δ for Flow-SDE. The paper's constant for Dance-SDE
    is uncertain; δ is used there too, which differs by a factor common to all steps at most.
    """

    clip_low: float = 2e-6
    """The ratio counts from 1 - clip_low on."""
    clip_high: float = 2e-6
    """The ratio counts up to 1 + clip_high."""
    aggregate: Aggregate = "token"
    """What the loss is a mean over: all tokens or actions, rows (row, row_sum), or a constant length."""
    step_weight: StepWeight = "inverse_dt"
    """inverse_dt: the loss of a denoising step is divided by its length δ; none: it is not."""
    weight: float = 1.0
    """Of this term in the loss."""

    def __post_init__(self) -> None:
        if self.clip_low < 0 or self.clip_high < 0:
            raise ValueError(f"clip_low = {self.clip_low} and clip_high = {self.clip_high}; wanted 0 or more.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logprobs", "gaussian_logprobs", "mean_shift_old", "std"}) | step_weight_needs(
            self.step_weight
        )

    @property
    def couples(self) -> Couples:
        return "action"

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        plain = torch.where(view.mask.bool(), values["gaussian_logprobs"] - view.old_logprobs, 0.0)
        log_ratio = ratio_norm(plain, values["mean_shift_old"], values["std"])
        clip = dict(clip_low=self.clip_low, clip_high=self.clip_high)
        weight, denominator = aggregate_weight(view, self.aggregate)
        return Term(
            name="policy",
            loss=self.weight * step_weight(self.step_weight, values) * surrogate(log_ratio, view.advantage, **clip),
            weight=weight,
            denominator=denominator,
            stats=ratio_stats(log_ratio, view.advantage, **clip) | {"approx_kl": 0.5 * plain.detach() ** 2},
        )
