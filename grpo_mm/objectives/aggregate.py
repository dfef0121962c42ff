"""How actions are averaged: one weight per action and one global denominator."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from grpo_mm.types import View

Aggregate = Literal["token", "row", "constant"]


def aggregate_weight(view: View, aggregate: Aggregate) -> tuple[Tensor, float]:
    """(weight, denominator) such that sum(loss · weight) / denominator is the wanted mean over the whole update.

    token: every trained action counts the same (DAPO, arXiv:2503.14476, eq. 8).
    row: the mean over each row's actions, then over rows (GRPO, arXiv:2402.03300, eq. 3).
    constant: sum over actions divided by rows · A, so long rows weigh more (Dr.GRPO, arXiv:2503.20783).
    """
    if aggregate == "token":
        return view.mask, view.counts.actions
    if aggregate == "row":
        return view.mask / view.row_actions, view.counts.rows
    return view.mask, view.counts.rows * view.counts.max_actions
