"""The control of every learning check: the same rewards, given to the wrong rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from grpo_mm.identity import REFUSED
from grpo_mm.processes.rng import stream
from grpo_mm.rollout.table import Table


@dataclass(frozen=True)
class Shuffle:
    """Permutes the rewards over all rows of the batch, the same way for every component.

    Put it first: a run with it must not learn. The permutation is keyed by the rewards themselves, so that it is another
    one at each step, the same on every rank, and needs no state.
    """

    seed: int = field(default=0, metadata=REFUSED)

    min_group_size = 1

    def __call__(self, table: Table) -> Table:
        content = [value.tolist() for value in table.values.values()]
        order = torch.randperm(len(table), generator=stream(self.seed, "shuffle", content))
        # What failed goes along with its rewards: a row is left out where its NaN landed, and only there.
        columns = {**table.columns, "failed": table.columns["failed"][order]}
        return replace(table, values={name: value[order] for name, value in table.values.items()}, columns=columns)
