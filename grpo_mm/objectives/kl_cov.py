"""KL-Cov: hold back the few actions that drive the entropy down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate
from grpo_mm.objectives.clipped_ratio import MAX_LOG_RATIO
from grpo_mm.objectives.logprob_term import LogprobTerm
from grpo_mm.objectives.ratio import log_ratio


def high_covariance(logprobs_NA: Tensor, advantages_NA: Tensor, mask_NA: Tensor, *, share: float) -> Tensor:
    """[N, A] bool, the `share` of the trained actions (at least one) with the largest (A - Ā)·(logprob - its mean).

    Means are over all trained actions of the update. The sum of that product is what the entropy falls by.
    """
    trained = torch.nonzero(mask_NA.flatten()).flatten()
    marked = torch.zeros(mask_NA.numel(), dtype=torch.bool, device=mask_NA.device)
    if not len(trained):
        return marked.view(mask_NA.shape)
    logprob, advantage = (value.detach().flatten()[trained].double() for value in (logprobs_NA, advantages_NA))
    covariance = (advantage - advantage.mean()) * (logprob - logprob.mean())
    count = max(1, int(share * len(trained)))
    marked[trained[torch.argsort(covariance, descending=True, stable=True)[:count]]] = True
    return marked.view(mask_NA.shape)


def kl_cov(
    logprobs_NA: Tensor,
    old_logprobs_NA: Tensor,
    advantages_NA: Tensor,
    mask_NA: Tensor,
    *,
    share: float = 2e-4,
    kl: float = 1.0,
) -> Tensor:
    """Loss per action: -r·A without a clip, plus kl·|logprob - old| on the actions of `high_covariance`; 0 where masked.

    Source: arXiv:2505.22617, grade [C] (forks of the released code): |log r| stands for the KL there, and the share
    and 1 for its weight are its defaults. On the first update after a rollout |log r| is 0 and so is its gradient.
    """
    found = log_ratio(logprobs_NA, old_logprobs_NA, mask_NA)
    held_NA = high_covariance(logprobs_NA, advantages_NA, mask_NA, share=share)
    loss_NA = -advantages_NA.to(found.dtype) * found.clamp(max=MAX_LOG_RATIO).exp()
    return (loss_NA + kl * torch.where(held_NA, found.abs(), 0.0)) * mask_NA


@dataclass(frozen=True)
class KlCov(LogprobTerm):
    """`kl_cov` as a term of the objective; the actions are chosen over the whole update, on all ranks."""

    share: float = 2e-4
    """Of the trained actions; 2e-3 for models of some 7 B parameters (from memory, uncertain)."""
    kl: float = 1.0
    """Weight of the log-ratio on the chosen actions."""
    aggregate: Aggregate = "token"
    """What the loss is a mean over: all tokens or actions, rows (row, row_sum), or a constant length."""
    weight: float = 1.0
    """Of this term in the loss."""

    couples = "update"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.kl < 0:
            raise ValueError(f"share = {self.share}, kl = {self.kl}; wanted in (0, 1], and 0 or more.")

    def loss(self, logprobs_NA: Tensor, old_logprobs_NA: Tensor, advantages_NA: Tensor, mask_NA: Tensor) -> Tensor:
        return kl_cov(logprobs_NA, old_logprobs_NA, advantages_NA, mask_NA, share=self.share, kl=self.kl)
