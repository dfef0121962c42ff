"""Rows that ran into the length limit: left out (DAPO), or silenced by chance (MicroCoder)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpo_mm.identity import REFUSED
from grpo_mm.processes.rng import stream
from grpo_mm.rollout.table import Table


@dataclass(frozen=True)
class OverlongMask:
    """Leaves truncated rows out of the loss; their reward still counts in the statistics of the group.

    Source: arXiv:2503.14476 (DAPO), overlong filtering. Grade A (TRL's mask of truncated completions, verl).
    """

    min_group_size = 1
    columns = frozenset({"truncated"})
    why = "It says which rows ran into the length limit."

    def __call__(self, table: Table) -> Table:
        return table.leaving_out(table.columns["truncated"].bool())


def repeats(token_NA: Tensor, length_N: Tensor, *, window: int = 128) -> Tensor:
    """True for rows whose last `window` tokens equal the `window` before, [N] bool; False for a row too short to tell.

    Args:
        token_NA: [N, A] token ids, a row's tokens first.
        length_N: [N] how many of them there are.
    """
    at_NW = length_N[:, None] - window + torch.arange(window)
    last_NW = token_NA.gather(1, at_NW.clamp_min(0).clamp_max(token_NA.shape[1] - 1))
    before_NW = token_NA.gather(1, (at_NW - window).clamp_min(0).clamp_max(token_NA.shape[1] - 1))
    return (length_N >= 2 * window) & (last_NW == before_NW).all(dim=1)


def silenced(
    truncated_N: Tensor, incorrect_N: Tensor, repetitive_N: Tensor, uniform_N: Tensor, *, share: float
) -> Tensor:
    """1[truncated and not incorrect and not repetitive and u < share], [N] bool.

    "Not incorrect" is what the authors write where one would say that a truncated row has a correct answer.

    Source: arXiv:2603.07777 (MicroCoder-GRPO), project page; share 0.3. Grade A.
    """
    return truncated_N.bool() & ~incorrect_N.bool() & ~repetitive_N.bool() & (uniform_N < share)


@dataclass
class ConditionalTruncationMask:
    """Advantage 0 for a random `share` of the truncated rows that are neither wrong nor repetitive: after normalisation.

    Silenced rows stay in the denominators, as in the published equation; a group no longer sums to 0. The number drawn for
    a row depends on the seed, on how many steps were applied so far, on its prompt and its number within the group: not on
    the rank or the batch.

    Source: arXiv:2603.07777 (MicroCoder-GRPO), project page. Grade A.
    """

    share: float = 0.3
    seed: int = field(default=0, metadata=REFUSED)
    steps_seen: int = field(default=0, init=False)

    min_group_size = 1
    columns = frozenset({"truncated", "incorrect", "repetitive", "prompt_id"})
    why = "The mask asks of every row whether it ran into the length limit, is wrong, or ends in a repetition."

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share}; wanted between 0 and 1.")

    def __call__(self, table: Table) -> Table:
        c = table.columns
        eligible_M = silenced(c["truncated"], c["incorrect"], c["repetitive"], torch.zeros(len(table)), share=1)
        # One generator per sample that may be silenced, few as they are.
        rows = torch.nonzero(eligible_M).flatten()
        names = zip(c["prompt_id"][rows].tolist(), c["sample"][rows].tolist(), strict=True)
        draws = [self.uniform(prompt_id, sample) for prompt_id, sample in names]
        out_M = eligible_M.clone()
        out_M[rows] = torch.tensor(draws, dtype=torch.float64) < self.share
        return table.with_values({n: torch.where(out_M & v.isfinite(), 0.0, v) for n, v in table.values.items()})

    def uniform(self, prompt_id: int, sample: int) -> float:
        """The number in [0, 1) of one sample at this step."""
        draw = stream(self.seed, "truncation_mask", self.steps_seen, prompt_id, sample)
        return float(torch.rand((), generator=draw, dtype=torch.float64))

    def update(self, table: Table) -> None:
        self.steps_seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps_seen": self.steps_seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps_seen = state["steps_seen"]
