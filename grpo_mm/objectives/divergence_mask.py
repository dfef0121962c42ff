"""Flow-DPPO: a trust region by divergence in place of a clipped ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate, aggregate_weight
from grpo_mm.objectives.clipped_ratio import MAX_LOG_RATIO
from grpo_mm.objectives.kl import gaussian_kl
from grpo_mm.types import Couples, Term, View


def divergence_mask(log_ratio: Tensor, advantage: Tensor, divergence: Tensor, *, limit: float) -> Tensor:
    """True where an action is trained: within the limit, or where the update leads back towards the old policy.

    Left out are actions with divergence >= limit that move further away: A > 0 and r > 1, or A < 0 and r < 1.

    Source: arXiv:2606.11025 (Flow-DPPO).
    """
    away = ((advantage > 0) & (log_ratio > 0)) | ((advantage < 0) & (log_ratio < 0))
    return ~((divergence >= limit) & away)


@dataclass(frozen=True)
class DivergenceMask:
    """-A·r without a clip; D = mean(Δμ²)/(2 std²) against the rollout's mean decides which actions are trained.

    Source: arXiv:2606.11025 (Flow-DPPO), limit 1e-5.
    """

    limit: float = 1e-5
    """D below which an action is trained whatever its direction."""
    aggregate: Aggregate = "token"
    """What the loss is a mean over: all tokens or actions, rows (row, row_sum), or a constant length."""
    weight: float = 1.0
    """Of this term in the loss."""

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"limit = {self.limit}; wanted above 0.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logprobs", "mean_shift_old", "std"})

    @property
    def couples(self) -> Couples:
        return "action"

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        log_ratio = torch.where(view.mask.bool(), values["logprobs"] - view.old_logprobs, 0.0)
        ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
        with torch.no_grad():
            divergence = gaussian_kl(values["mean_shift_old"], values["std"])
            kept = divergence_mask(log_ratio, view.advantage, divergence, limit=self.limit).to(ratio.dtype)
        weight, denominator = aggregate_weight(view, self.aggregate)
        return Term(
            name="policy",
            loss=-self.weight * view.advantage.to(ratio.dtype) * ratio * kept,
            weight=weight,
            denominator=denominator,
            stats={
                "ratio": ratio.detach(),
                "clip_frac": 1 - kept,
                "divergence": divergence,
                "approx_kl": 0.5 * log_ratio.detach() ** 2,
            },
        )
