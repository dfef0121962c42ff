"""The frame of a stage that changes one reward and leaves the others as they are."""

from __future__ import annotations

from torch import Tensor

from grpo_mm.advantages.shared.signals import target_of
from grpo_mm.rollout.table import Table


class OneReward:
    """`changed` gives the new values of the reward `target`; None: the only one. Not a dataclass: fields are the stage's own."""

    target: str | None
    stage: str
    """The stage's kind, for messages."""

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        """[M] float64 for the [M] that there were."""
        raise NotImplementedError

    def __call__(self, table: Table) -> Table:
        name = target_of(table, self.target, stage=self.stage)
        return table.with_values({**table.values, name: self.changed(table.values[name].double(), table)})
