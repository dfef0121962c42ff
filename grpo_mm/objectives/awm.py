"""AWM: the flow-matching loss as a stand-in for the log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate, aggregate_weight
from grpo_mm.objectives.clipped_ratio import ratio_stats, surrogate
from grpo_mm.types import Couples, Term, View

AwmForm = Literal["plain", "t", "t2", "huber", "generalised_huber"]


def awm_logprob(
    matching_loss: Tensor, t: Tensor, *, form: AwmForm = "generalised_huber", p: float = 0.25, eps: float = 1e-10
) -> Tensor:
    """Minus the weighted matching loss ℓ at noise level t, any shape, float64.

    plain: ℓ.  t: t·ℓ.  t2: t²·ℓ.  huber: t·(√(ℓ + ε) - ε).  generalised_huber: (t/p)·((ℓ + ε)^p - ε^p).

    Source: arXiv:2509.25050 (AWM), section 4 and released code, which takes the last form by default.
    """
    loss, t = matching_loss.double(), t.double()
    if form == "huber":
        return -t * ((loss + eps).sqrt() - eps)
    if form == "generalised_huber":
        return -(t / p) * ((loss + eps) ** p - eps**p)
    return -loss * {"plain": torch.ones_like(t), "t": t, "t2": t**2}[form]


@dataclass(frozen=True)
class Awm:
    """The clipped surrogate on exp(logp - logp_old) with `awm_logprob`, over the draws of {kind: forward_process}.

    ratio: "action" takes the ratio of each draw, "row" that of the sum over a row's draws. Old and new use the same draws,
    so on the first update after a rollout the ratio is 1 and the clip sleeps. Advantages are divided by `advantage_limit`.

    Source: arXiv:2509.25050. Clip range of the released code not read (uncertain); ours is wide.
    """

    form: AwmForm = "generalised_huber"
    """How the matching loss is weighted by noise level."""
    ratio: Literal["action", "row"] = "action"
    """Of each draw (action), or of the sum over a row's draws (row)."""
    clip_low: float = 0.2
    """The ratio counts from 1 - clip_low on."""
    clip_high: float = 0.2
    """The ratio counts up to 1 + clip_high."""
    advantage_limit: float = 5.0
    """Advantages are divided by it."""
    aggregate: Aggregate = "token"
    """What the loss is a mean over: all tokens or actions, rows (row, row_sum), or a constant length."""
    weight: float = 1.0
    """Of this term in the loss."""

    def __post_init__(self) -> None:
        if self.clip_low < 0 or self.clip_high < 0 or self.advantage_limit <= 0:
            raise ValueError(
                f"clip_low = {self.clip_low}, clip_high = {self.clip_high}, advantage_limit = {self.advantage_limit}; "
                "wanted 0 or more, and above 0."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"matching_loss", "matching_loss_old", "sigma"})

    @property
    def couples(self) -> Couples:
        return self.ratio

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        new, old = (
            awm_logprob(values[k], values["sigma"], form=self.form) for k in ("matching_loss", "matching_loss_old")
        )
        log_ratio = torch.where(view.mask.bool(), new - old, 0.0).to(values["matching_loss"].dtype)
        if self.ratio == "row":
            log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
        advantage = view.advantage / self.advantage_limit
        clip = dict(clip_low=self.clip_low, clip_high=self.clip_high)
        weight, denominator = aggregate_weight(view, self.aggregate)
        return Term(
            name="policy",
            loss=self.weight * surrogate(log_ratio, advantage, **clip),
            weight=weight,
            denominator=denominator,
            stats=ratio_stats(log_ratio, advantage, **clip) | {"matching_loss": values["matching_loss"].detach()},
        )
