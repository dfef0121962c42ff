"""Pass rates of a program to a reward that looks back at the turn before: the ladder of Cobalt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.shared.signals import signal, target_of
from grpo_mm.rollout.table import Table


def pass_rate_ladder(
    pass_rate_N: Tensor, previous_N: Tensor, format_N: Tensor | None = None, *, format_bonus: float = 0.1
) -> Tensor:
    """The reward of a turn in [-1, 1], [N].

    1 for a full pass, 0.2 from a half, 0 above none, -0.1 for none. Short of a full pass, after a turn that passed p0 > 0:
    a gain adds 0.1 · (p - p0)/(1 - p0), anything else earns -0.1 + 0.1 · (p - p0)/p0 instead. Then the format.

    Args:
        pass_rate_N: [N] p in [0, 1]; -1 for an answer without code, which earns -1; NaN stays NaN.
        previous_N: [N] p0, the best pass rate of the turns before; 0 or NaN where there is none.
        format_N: [N] 1 kept, below 1/2 violated (-0.9). None: kept, and no bonus.
        format_bonus: what a kept format adds where the reward is negative.

    Source: arXiv:2602.03806 (Cobalt). Grade A: the release, read as a summary. Uncertain: p = p0 > 0 (here no gain), and how the
    format bonus of "at most 0.1" grows (here all or nothing).
    """
    p, p0 = pass_rate_N.double(), previous_N.double().nan_to_num()
    base = -0.1 + 0.1 * (p > 0).double() + 0.2 * (p >= 0.5).double()
    gained = base + 0.1 * (p - p0) / (1 - p0).clamp_min(1e-8)
    lost = -0.1 + 0.1 * (p - p0) / p0.clamp_min(1e-8)
    reward = torch.where(p0 > 0, torch.where(p > p0, gained, lost), base)
    reward = torch.where(p >= 1, 1.0, reward)
    if format_N is not None:
        kept = torch.where(reward < 0, reward + format_bonus, reward)
        reward = torch.where(format_N >= 0.5, kept, reward - 0.9)
    reward = torch.where(p < 0, -1.0, reward).clamp(-1, 1)
    return torch.where(torch.isnan(p), torch.nan, reward)


@dataclass(frozen=True)
class PassRateLadder:
    """`pass_rate_ladder` on the reward `target`; what it reads leaves the table, so that only the ladder is summed.

    `previous`, `format`: a reward or a column each. A prompt of Cobalt is a cut-off conversation of several turns, and p0
    belongs to the prompt: a reward of weight 0 that reads it from the prompt's target, or a column.
    """

    target: str
    """The reward that is the pass rate, in [0, 1]."""
    previous: str
    """The reward or column with the best pass rate of earlier turns."""
    format: str | None = None
    """The reward or column that says whether the format was kept; null: it was."""
    format_bonus: float = 0.1
    """What a kept format adds where the reward is negative."""

    min_group_size = 1

    def __call__(self, table: Table) -> Table:
        rate_M = table.values[target_of(table, self.target, stage="pass_rate_ladder")]
        previous_M = signal(table, self.previous, stage="pass_rate_ladder")
        format_M = None if self.format is None else signal(table, self.format, stage="pass_rate_ladder")
        found_M = pass_rate_ladder(rate_M, previous_M, format_M, format_bonus=self.format_bonus)
        rest = {name: v for name, v in table.values.items() if name not in (self.previous, self.format)}
        return table.with_values({**rest, self.target: found_M})
