"""How actions are averaged: one weight per action and one global denominator."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from grpo_mm.types import View

Aggregate = Literal["token", "row", "row_sum", "constant"] | float
"""A number is the constant that Dr.GRPO divides by in place of A, e.g. the longest answer that the run allows."""


def aggregate_weight(view: View, aggregate: Aggregate) -> tuple[Tensor, float]:
    """(weight, denominator) such that sum(loss · weight) / denominator is the wanted mean over the whole update.

    token: every trained action counts the same (DAPO, arXiv:2503.14476, eq. 8).
    row: the mean over each row's actions, then over rows (GRPO, arXiv:2402.03300, eq. 3).
    row_sum: the sum over each row's actions, then the mean over rows: the gradient of the expected reward. With a ratio per
    row, whose loss every action carries, that is the row's loss times its length (LUSPO).
    constant: sum over actions divided by rows · A, so long rows weigh more (Dr.GRPO, arXiv:2503.20783); a number C: by
    rows · C.
    """
    if aggregate == "token":
        return view.mask, view.counts.actions
    if aggregate == "row":
        return view.mask / view.row_actions, view.counts.rows
    if aggregate == "row_sum":
        return view.mask, view.counts.rows
    length = view.counts.max_actions if aggregate == "constant" else float(aggregate)
    if length <= 0:
        raise ValueError(f"aggregate = {aggregate}; wanted above 0.")
    return view.mask, view.counts.rows * length
