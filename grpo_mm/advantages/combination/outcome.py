"""Columns for set losses: which rows are correct, and which of those are to be preferred."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.table import Table


@dataclass(frozen=True)
class MarkPositive:
    """Marks the rows whose reward is above `threshold` in a column, for {kind: disco}; the values stay as they are.

    Where the rollout itself says what is correct, leave it out and name that column, {kind: disco, positive: correct}.

    It stands after {kind: weighted_sum}. DisCO (arXiv:2505.12366) is made for rewards of 0 and 1.
    """

    threshold: float = 0.5
    """Above it a reward counts as correct."""
    column: str = "positive"
    """The column that is made."""

    min_group_size = 2

    def __call__(self, table: Table) -> Table:
        _, value_M = table.only_value("mark_positive")
        return _with_column(table, self.column, (value_M > self.threshold).double(), stage="mark_positive")


def shortness(length_N: Tensor, max_length: float) -> Tensor:
    """1 - length / max_length, [N]: 1 for an empty answer, 0 for one of the longest.

    Source: arXiv:2510.04474 (DRPO), grade [A]; the release takes the padded length of the batch for `max_length`, which makes
    the preference depend on what else was sampled.
    """
    return 1 - length_N.double() / max_length


@dataclass(frozen=True)
class Shortness:
    """`shortness` as a column, by which {kind: disco, preference: shortness} weights the correct rows."""

    max_length: float
    """The longest answer that the run allows, in trained tokens."""
    column: str = "shortness"
    """The column that is made."""

    min_group_size = 1
    columns = frozenset({"length"})
    why = "It prefers short answers, and so needs to know how long they are."

    def __post_init__(self) -> None:
        if self.max_length <= 0:
            raise ValueError(f"max_length = {self.max_length}; wanted above 0.")

    def __call__(self, table: Table) -> Table:
        made_M = shortness(table.columns["length"], self.max_length)
        return _with_column(table, self.column, made_M, stage="shortness")


def _with_column(table: Table, name: str, made_M: Tensor, *, stage: str) -> Table:
    if name in table.columns:
        raise ConfigError(f"{stage}: the rollout has a column {name!r} already; give the stage another.")
    return replace(table, columns={**table.columns, name: made_M})
