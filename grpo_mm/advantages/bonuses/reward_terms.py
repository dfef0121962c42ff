"""Terms that join the reward before anything is compared: the divergence from the reference, the price of length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.rollout.table import Table


def overlong_penalty(length_N: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """0 up to max_length - buffer, then falling in a straight line to -1 at max_length and beyond, [N] float64.

    Args:
        length_N: [N] trained tokens of a row.
        max_length, buffer: tokens; 0 < buffer <= max_length.

    Source: arXiv:2503.14476 (DAPO), soft overlong punishment; max_length 20480, buffer 4096. Grade A (verl).
    """
    return ((max_length - buffer - length_N.double()) / buffer).clamp(-1, 0)


@dataclass(frozen=True)
class OverlongPenalty:
    """Adds `weight` × `overlong_penalty` to the reward: after {kind: weighted_sum}, before the comparison.

    Groups are chosen by {kind: drop_degenerate} before this stage, or the penalty makes every group look informative.
    """

    max_length: int = 20480
    """Tokens from which on the penalty is whole."""
    buffer: int = 4096
    """Tokens before `max_length` over which it grows."""
    weight: float = 1.0
    """The whole penalty, in the reward's unit."""

    min_group_size = 1
    columns = frozenset({"length"})
    why = "It is the number of trained tokens of each row."

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_length:
            raise ValueError(f"buffer = {self.buffer}; wanted above 0 and at most max_length = {self.max_length}.")
        not_below_zero(weight=self.weight)

    def __call__(self, table: Table) -> Table:
        penalty_M = overlong_penalty(table.columns["length"], max_length=self.max_length, buffer=self.buffer)
        return _added(table, self.weight * penalty_M, "overlong_penalty")


@dataclass(frozen=True)
class KlInReward:
    """reward - beta · Σ_t (lp_old - lp_ref), the k1 estimate for the whole row: after {kind: weighted_sum}.

    The sum may be negative: a row that the reference finds likelier than the policy does is paid for it.

    Source: arXiv:2402.14740 (RLOO); beta 0.05 in TRL. Grade A (TRL, verl).
    """

    beta: float = 0.05
    """Of the summed log-ratio, in reward per nat."""

    min_group_size = 1
    columns = frozenset({"ref_log_ratio"})
    why = "It is the sum over a row of the log-probability when sampled minus that of the reference."

    def __post_init__(self) -> None:
        not_below_zero(beta=self.beta)

    def __call__(self, table: Table) -> Table:
        return _added(table, -self.beta * table.columns["ref_log_ratio"].double(), "kl_in_reward")


def _added(table: Table, term_M: Tensor, stage: str) -> Table:
    """NaN stays NaN: a term is no reward."""
    name, value_M = table.only_value(stage)
    return table.with_values({name: value_M + torch.where(torch.isfinite(value_M), term_M, 0.0)})
