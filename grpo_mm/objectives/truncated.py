"""Truncated importance sampling: for a sampler whose probabilities differ from those of the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.registry import Role
from grpo_mm.types import BEHAVIOUR, Couples, Term, View


def truncated_weight(
    old_logprobs_NA: Tensor, behaviour_logprobs_NA: Tensor, mask_NA: Tensor, *, cap: float = 2.0
) -> Tensor:
    """min(π_old / π_behaviour, cap) per action, without gradient; 1 where masked, or where no engine sampled (NaN).

    `old` is the policy that ratios are taken against, computed by the trainer; `behaviour` what the engine said it sampled
    from, e.g. an inference engine in low precision. Where they agree the weight is 1.

    Source: the truncated weights of arXiv:1802.01561 (IMPALA), grade [C]; for the mismatch of engines they are
    known from a report without an arXiv number. The cap there is 2 (uncertain).
    """
    gap_NA = (old_logprobs_NA - behaviour_logprobs_NA).detach()
    return torch.where(mask_NA.bool() & ~gap_NA.isnan(), gap_NA.exp().clamp(max=cap), 1.0)


@dataclass(frozen=True)
class Truncated:
    """Another term, its loss times `truncated_weight`: {kind: truncated, of: {kind: cispo}, cap: 2}.

    It goes with old_logprobs: recompute; with those of the rollout every weight is 1.
    """

    of: Annotated[Any, Role("objective")]
    """A term with a loss for each action: couples action, row, or (kl_cov) the update."""
    cap: float = 2.0
    """The largest weight of an action."""

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"cap = {self.cap}; wanted 1 or more.")
        if self.of.couples == "group" or not getattr(self.of, "reads_advantage", True):
            raise ValueError(
                f"truncated: of = {type(self.of).__name__}; wanted a surrogate with a loss for each action, such as "
                "{kind: clipped_ratio}: weights go to what actions earned."
            )

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs

    @property
    def weight(self) -> float:
        return getattr(self.of, "weight", 1.0)

    @property
    def columns(self) -> frozenset[str]:
        return getattr(self.of, "columns", frozenset()) | {BEHAVIOUR}

    @property
    def couples(self) -> Couples:
        return self.of.couples

    @property
    def one_advantage_per_row(self) -> bool:
        return getattr(self.of, "one_advantage_per_row", self.of.couples == "row")

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        term = self.of(values, view)
        if term.loss.shape != view.mask.shape:
            raise ValueError(
                f"truncated: {type(self.of).__name__} has no loss for each action that a weight could go to."
            )
        weight = truncated_weight(view.old_logprobs, view.columns[BEHAVIOUR], view.mask, cap=self.cap)
        weight = weight.to(term.loss.dtype)
        return replace(term, loss=term.loss * weight, stats={**term.stats, "behaviour_weight": weight})
