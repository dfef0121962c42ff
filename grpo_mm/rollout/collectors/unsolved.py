"""Time-R1's filter: prompts that were solved when they were last asked are not asked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.collectors.more import More, Sample, Score, dealt, scored
from grpo_mm.rollout.groups import group_ids, group_mean
from grpo_mm.rollout.table import Table, prompt_ids
from grpo_mm.types import Batch, Rows


@dataclass(eq=False)
class Unsolved:
    """Takes the prompts of a step from `pool` batches of the stream: in their order, those first whose last mean reward was at
    most `threshold`, or that were never asked; solved ones only fill what is left.

    Source: arXiv:2503.13377 (Time-R1): after each epoch rows with IoU ≤ 0.70 are kept for the next; grades A, B. Deviates: the
    paper evaluates all training rows between epochs; here the rollouts themselves tell, so nothing is sampled twice.
    """

    metric: str | None = None
    """The reward that tells; None: the only one."""
    threshold: float = 0.7
    """Up to this mean reward a prompt counts as unsolved."""
    pool: int = 2
    """Batches of the stream from which a step's prompts are taken."""
    means: dict[int, float] = field(default_factory=dict, init=False)
    """Number of a prompt's id → the mean reward of its last group."""

    def __post_init__(self) -> None:
        if self.pool < 2:
            raise ConfigError(f"unsolved: pool = {self.pool}; wanted at least 2 batches to choose from.")

    def __call__(self, sample: Sample, score: Score, rows: Rows, more: More) -> list[Batch]:
        candidates = [*rows.prompts, *(p for n in range(1, self.pool) for p in more.prompts(n))]
        numbers = prompt_ids(candidates).tolist()
        first_seen = [i for i, number in enumerate(numbers) if number not in numbers[:i]]
        open_ = [i for i in first_seen if not self.means.get(numbers[i], -torch.inf) > self.threshold]
        order = [*open_, *(i for i in range(len(candidates)) if i not in open_)]
        chosen = tuple(candidates[i] for i in sorted(order[: len(rows.prompts)]))
        batch = scored(sample, score, more.groups(chosen))
        fresh = sum(i in open_ for i in order[: len(rows.prompts)])
        metrics = {"rollout/unsolved_frac": fresh / len(chosen), "rollout/solved_prompts": float(self._solved())}
        return [dealt(Batch(batch.rollout, batch.outputs, batch.scores, metrics=metrics), more.parts)]

    def update(self, table: Table) -> None:
        name = self.metric or next(iter(table.values))
        if name not in table.values:
            raise ConfigError(
                f"unsolved: metric = {self.metric}; there are {', '.join(sorted(table.values))}. Name one."
            )
        group_M = group_ids(table.columns["prompt_id"])
        mean_B = group_mean(table.values[name].double(), group_M)
        number_B = table.columns["prompt_id"].unique()
        self.means |= {n: m for n, m in zip(number_B.tolist(), mean_B.tolist(), strict=True) if m == m}

    def _solved(self) -> int:
        return sum(mean > self.threshold for mean in self.means.values())

    def state_dict(self) -> dict[str, Any]:
        return {"means": {str(number): mean for number, mean in self.means.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.means = {int(number): float(mean) for number, mean in state["means"].items()}
