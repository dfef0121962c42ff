"""Weighted GRPO: what fell below the group's mean weighs more, and the prompts that teach by it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.rollout.table import Table


def negative_weighted(advantage_N: Tensor, *, weight: float) -> Tensor:
    """Negative advantages times `weight`, the others as they are, [N]; NaN stays NaN."""
    return torch.where(advantage_N < 0, advantage_N * weight, advantage_N)


def signed_outcome(correct_N: Tensor, *, weight: float) -> Tensor:
    """1 for a success, -weight for a failure, [N] float64; NaN stays NaN.

    An affine map of 0/1: a mean and a deviation of the same group take `weight` out again, exactly.
    """
    correct_N = correct_N.double()
    return correct_N - weight * (1 - correct_N)


def paired_prompts(rate_B: Tensor, *, tries: int, margin: int) -> tuple[Tensor, Tensor]:
    """(hard but solvable, easy but brittle), [B] bool each: from what prompts a pair of an update is made.

    Hard: success in [1/tries, margin/tries]; brittle: in [1 - margin/tries, 1 - 1/tries], with `tries` probes of each prompt
    before training.

    Source: arXiv:2602.03452 (Beyond Variance). Grade D; that hard prompts have the same margin is our choice.
    """
    wins_B = (rate_B * tries).round()
    lost_B = tries - wins_B
    return (wins_B >= 1) & (wins_B <= margin), (lost_B >= 1) & (lost_B <= margin)


@dataclass(frozen=True)
class NegativeWeight:
    """`negative_weighted` on every component, after normalisation.

    Source: arXiv:2602.03452 (Beyond Variance). Grade D: where the paper applies its weight of failures is unknown. Applied to
    rewards of 1 and -weight it would cancel in the normalisation (see `signed_outcome`), so it multiplies advantages here.
    The size is our choice as well.
    """

    weight: float = 2.0
    """Times every negative advantage."""

    min_group_size = 1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight = {self.weight}; wanted 0 or more.")

    def __call__(self, table: Table) -> Table:
        return table.with_values({n: negative_weighted(v, weight=self.weight) for n, v in table.values.items()})
