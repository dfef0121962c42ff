"""The default collector: sample every row once, score what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grpo_mm.types import Batch, Outputs, Rollout, Rows, Scores

Sample = Callable[[Rows], tuple[Rollout, Outputs]]
Score = Callable[[Rollout, Outputs], dict[str, Scores]]


@dataclass(frozen=True)
class SampleAndScore:
    """One rollout per step."""

    def __call__(self, sample: Sample, score: Score, rows: Rows) -> list[Batch]:
        rollout, outputs = sample(rows)
        return [Batch(rollout, outputs, score(rollout, outputs))]
