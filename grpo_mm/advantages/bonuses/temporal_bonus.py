"""Video-R1 (T-GRPO): right answers earn more where the order of the frames mattered, and where they are neither short nor long."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from grpo_mm.advantages.shared.one_reward import OneReward
from grpo_mm.rollout.groups import group_ids, group_mean, group_sum
from grpo_mm.rollout.table import Table


def order_matters(accuracy_N: Tensor, shuffled_N: Tensor, group_N: Tensor, *, share: float = 0.8) -> Tensor:
    """[N] bool: groups whose mean accuracy p reaches `share` of the mean accuracy p̃ with shuffled frames.

    `shuffled_N`: [N] p̃ of each row's prompt; NaN (a picture, no shuffled rows): False.

    Source: arXiv:2503.21776 (Video-R1), eq. 1, share .8; grades A, B.
    """
    group_N = group_ids(group_N)
    return group_mean(accuracy_N.double(), group_N)[group_N] >= share * shuffled_N.double()


@dataclass(frozen=True)
class TemporalBonus(OneReward):
    """Adds `bonus` to the reward `target` of right rows (above `least`) of groups in which `order_matters`.

    The rollout declares `shuffled_accuracy`: the collector {kind: shuffled_frames} measures it.
    """

    target: str | None = None
    """The reward that is changed; null: the only one there is."""
    bonus: float = 0.3
    """Added to right rows where the order of frames matters, in the reward's unit."""
    share: float = 0.8
    """Of the accuracy with shuffled frames, what the group must reach."""
    least: float = 0.1
    """Accuracy above which a row is right."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    stage = "temporal_bonus"
    min_group_size = 2
    columns = frozenset({"shuffled_accuracy"})
    why = "It is the accuracy with shuffled frames: collector={kind: shuffled_frames}."

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share}; wanted 0 to 1: of the accuracy with shuffled frames.")

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        matters_M = order_matters(value_M, table.columns["shuffled_accuracy"], table.key(self.key), share=self.share)
        return value_M + self.bonus * (matters_M & (value_M > self.least))


@dataclass(frozen=True)
class LengthBonus(OneReward):
    """Adds `bonus` to the reward `target` of right rows of `low` to `high` tokens, in groups with more than one right row.

    Source: arXiv:2503.21776 (Video-R1), length reward, 320 to 512 tokens; grades A, B.
    """

    target: str | None = None
    """The reward that is changed; null: the only one there is."""
    bonus: float = 0.2
    """Added to right rows of that length, in the reward's unit."""
    low: int = 320
    """Tokens, at least."""
    high: int = 512
    """Tokens, at most."""
    least: float = 0.1
    """Accuracy above which a row is right."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    stage = "length_bonus"
    min_group_size = 2
    columns = frozenset({"length"})
    why = "It is the number of tokens of a row."

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low = {self.low}, high = {self.high}; wanted 0 ≤ low ≤ high.")

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        length_M, group_M, right_M = table.columns["length"], table.key(self.key), value_M > self.least
        several_M = group_sum(right_M.double(), group_ids(group_M))[group_M] > 1
        within_M = (length_M >= self.low) & (length_M <= self.high)
        return value_M + self.bonus * (right_M & several_M & within_M)
