"""The 80/20 rule: only the actions at which the policy hesitates are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from torch import Tensor

from grpo_mm.registry import Role
from grpo_mm.types import Couples, Term, View


def top_entropy(entropy_NA: Tensor, mask_NA: Tensor, *, share: float = 0.2) -> Tensor:
    """[N, A] bool, the trained actions whose entropy is at least that of the `share` with the largest (at least one of them).

    Actions of equal entropy are kept or left out together.

    Source: arXiv:2506.01939, the indicator H ≥ τ_ρ of its DAPO objective, ρ = 0.2; τ is over all trained tokens of the update, on
    all ranks.
    """
    trained_NA = mask_NA.bool()
    entropy = entropy_NA.detach()[trained_NA]
    if not len(entropy):
        return trained_NA
    kept = max(1, math.ceil(share * len(entropy) - 1e-9))
    least = entropy.sort(descending=True).values[kept - 1]
    return trained_NA & (entropy_NA.detach() >= least)


@dataclass(frozen=True)
class TopEntropy:
    """Another term, without the loss of the actions outside `top_entropy`: {kind: top_entropy, of: {kind: clipped_ratio}}.

    The average stays that over all actions, as in the paper: leaving out actions makes the loss smaller. For policies that
    provide `entropy`, those of tokens.
    """

    of: Annotated[Any, Role("objective")]
    """A term with a loss for each action: couples action, row, or (kl_cov) the update."""
    share: float = 0.2
    """Of the actions, the part with the highest entropy that is trained, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share = {self.share}; wanted above 0 and at most 1.")
        if self.of.couples == "group" or not getattr(self.of, "reads_advantage", True):
            raise ValueError(
                f"top_entropy: of = {type(self.of).__name__}; wanted a surrogate with a loss for each action, such as "
                "{kind: clipped_ratio}."
            )

    @property
    def couples(self) -> Couples:
        return "update"

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs | {"entropy"}

    @property
    def weight(self) -> float:
        return getattr(self.of, "weight", 1.0)

    @property
    def columns(self) -> frozenset[str]:
        return getattr(self.of, "columns", frozenset())

    @property
    def one_advantage_per_row(self) -> bool:
        return getattr(self.of, "one_advantage_per_row", self.of.couples == "row")

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        term = self.of(values, view)
        if term.loss.shape != view.mask.shape:
            raise ValueError(
                f"top_entropy: {type(self.of).__name__} has no loss for each action that could be left out."
            )
        kept = top_entropy(values["entropy"], view.mask, share=self.share).to(term.loss.dtype)
        return replace(term, loss=term.loss * kept, stats={**term.stats, "kept_by_entropy": kept})
