"""A trust region by a penalty that sleeps while the policy is close to the one that sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.types import Couples, Term, View


def hinge_kl(logprobs_NA: Tensor, old_logprobs_NA: Tensor, mask_NA: Tensor, *, limit: float = 1e-4) -> Tensor:
    """½·max(0, KL - limit)² with KL = mean over trained actions of (old - logprob), a scalar.

    KL estimates KL(π_old ‖ π), as the actions come from π_old.

    Source: arXiv:2505.12366 (DisCO), grade [A]; the release takes the mean over a micro-batch, we over the whole update.
    """
    return 0.5 * (_kl(logprobs_NA, old_logprobs_NA, mask_NA) - limit).clamp_min(0) ** 2


def _kl(logprobs_NA: Tensor, old_logprobs_NA: Tensor, mask_NA: Tensor) -> Tensor:
    gap_NA = torch.where(mask_NA.bool(), old_logprobs_NA - logprobs_NA, 0.0)
    return gap_NA.sum() / mask_NA.sum().clamp_min(1)


@dataclass(frozen=True)
class HingeKl:
    """`hinge_kl` times `weight`; beside {kind: disco}."""

    limit: float = 1e-4
    """KL, in nats per action, up to which nothing is held back."""
    weight: float = 1e3
    """Of the squared excess."""

    def __post_init__(self) -> None:
        if self.limit < 0 or self.weight < 0:
            raise ValueError(f"limit = {self.limit}, weight = {self.weight}; wanted 0 or more.")

    reads_advantage = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logprobs"})

    @property
    def couples(self) -> Couples:
        return "update"

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        loss = self.weight * hinge_kl(values["logprobs"], view.old_logprobs, view.mask, limit=self.limit)
        kl = _kl(values["logprobs"].detach(), view.old_logprobs, view.mask)
        return Term("hinge_kl", loss, torch.ones_like(loss), 1.0, stats={"old_kl": kl.expand_as(view.mask)})
