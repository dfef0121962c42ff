"""SPO: a Beta tracker of every prompt is the baseline, so that a prompt needs no group."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.advantages.combination.combine import WeightedSum
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_mean, group_sum
from grpo_mm.rollout.table import Table, id_numbers

LEAST_MEMORY, MOST_MEMORY = 0.875, 0.96
"""The bounds of what a tracker keeps at each visit."""


def tracker_memory(
    shift_N: Tensor, *, half_life: float = 0.06, low: float = LEAST_MEMORY, high: float = MOST_MEMORY
) -> Tensor:
    """ρ = 2^(-shift / half_life) within [low, high], [N]: how much of a tracker is kept.

    `shift_N`: how far the policy moved on the prompt since it was last seen. In the release it is the mean of
    |lp_then - lp_now| over the tokens of the prompt's stored response, 0 for a first visit.

    Source: arXiv:2509.13232 (SPO) and the recipe of verl; grade A with C.
    """
    return torch.exp2(-shift_N / half_life).clamp(low, high)


def initial_counts(successes: Tensor, tries: Tensor, *, low: float = LEAST_MEMORY) -> tuple[Tensor, Tensor]:
    """(α, β) from probes before training: N0 (s + ½)/(n + 1) and N0 (n - s + ½)/(n + 1), N0 = 1/(1 - low).

    Source: as `tracker_memory`; 8 tries.
    """
    total = 1 / (1 - low)
    return total * (successes + 0.5) / (tries + 1), total * (tries - successes + 0.5) / (tries + 1)


def tracked(alpha: Tensor, beta: Tensor, reward: Tensor, memory: Tensor | float) -> tuple[Tensor, Tensor]:
    """(ρα + r, ρβ + 1 - r) for a reward in [0, 1]; the value α/(α + β) moves by η (r - v), η = 1/(ρ(α + β) + 1)."""
    return memory * alpha + reward, memory * beta + 1 - reward


def read_probes(path: Path) -> dict[str, tuple[float, float]]:
    """Prompt id: (successes, tries) of a JSON file; raises ConfigError unless 0 <= successes <= tries throughout."""
    wanted = "JSON of prompt id: [successes, tries] with 0 ≤ successes ≤ tries, or no `probes`"
    if not path.is_file():
        raise ConfigError(f"value_tracker: no file {path}; wanted {wanted}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"value_tracker: {path} is no JSON ({error}); wanted {wanted}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"value_tracker: {path} holds a {type(found).__name__}; wanted {wanted}.")
    for name, tried in found.items():
        numbers = isinstance(tried, list) and len(tried) == 2 and all(type(n) in (int, float) for n in tried)
        if not numbers or not 0 <= tried[0] <= tried[1] < math.inf:
            raise ConfigError(f"value_tracker: {path} says {tried!r} of {name!r}; wanted {wanted}.")
    return {name: (float(successes), float(tries)) for name, (successes, tries) in found.items()}


@dataclass(eq=False)
class ValueTracker:
    """reward - value of the prompt before this step, for the sum of the rewards; it goes first.

    {kind: group_norm, key: [], ddof: 1, eps: 1e-8} after it centres and scales by the batch. The reward is mapped from
    [low, high] to [0, 1]; what lies outside counts as its end. A prompt with n rows in a step is forgotten once and counts n
    rewards. A prompt never seen has α = β = `start`, or what `probes` says: a JSON file of prompt id: [successes, tries], read
    at the first use. Ids of prompt files are "<file stem>/<row number>", or "<file stem>/<value of `id_field`>".

    Memory is `constant_memory` unless `shift_column` names a column with the shift that `tracker_memory` reads: storing responses and
    computing them again costs a forward pass, which the core does not make.

    Source: arXiv:2509.13232 (SPO) and the recipe of verl; grade A with C. Deviates: several rows of a prompt, as said.
    """

    low: float = 0.0
    """The reward of failure."""
    high: float = 1.0
    """The reward of success."""
    start: float = 0.5
    """α and β, the counts of success and failure, of a prompt that was never seen."""
    constant_memory: float = LEAST_MEMORY
    """Share of the counts that is kept at each visit, in (0, 1]."""
    shift_column: str | None = None
    """A column that tells how far the policy has moved on the prompt; null: `constant_memory`."""
    half_life: float = 0.06
    """The shift, in log-probability, after which half of the counts is kept."""
    probes: str | None = None
    """A JSON file, prompt id → [successes, tries]; null: none."""
    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64), init=False)
    """[P] sorted; `counts` is aligned."""
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.float64), init=False)
    """[P, 2] α and β."""
    visited: set[int] = field(default_factory=set, init=False)
    """Ids of the prompts that a step asked; `probes` may name others."""
    unread: bool = field(default=True, init=False)
    """Whether `probes` is still to be read; a checkpoint takes its place."""

    min_group_size = 1
    why = "A tracker knows its prompts by it."

    def __post_init__(self) -> None:
        if self.low >= self.high or self.start <= 0 or not 0 < self.constant_memory <= 1 or self.half_life <= 0:
            raise ValueError(
                f"low = {self.low}, high = {self.high}, start = {self.start}, constant_memory = {self.constant_memory}, half_life "
                f"= {self.half_life}; wanted low < high, a start above 0, a memory in (0, 1], and a half-life above 0."
            )

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"prompt_id"} | ({self.shift_column} if self.shift_column else set()))

    def __call__(self, table: Table) -> Table:
        """The table with what the sum of the rewards is above the value."""
        return table.with_values({"total": self._reward(table) - self.values(table.columns["prompt_id"])})

    def check_files(self) -> None:
        """Raises ConfigError for a file of probes that is missing or says nonsense."""
        self._read_probes()

    def values(self, prompt_id_N: Tensor) -> Tensor:
        """The value of each prompt, [N] in [0, 1]; ½ for one never seen."""
        counts_N2 = self._counts(prompt_id_N)
        return counts_N2[:, 0] / counts_N2.sum(dim=1)

    def visits(self, prompt_id_N: Tensor) -> Tensor:
        """The effective count α + β of each prompt, [N]."""
        return self._counts(prompt_id_N).sum(dim=1)

    def set_counts(self, ids: Tensor, alpha: Tensor, beta: Tensor) -> None:
        """Starts prompts at what is known of them (`initial_counts`), or replaces what was; ids must differ."""
        self._read_probes()
        self._set(ids, alpha, beta)

    def _set(self, ids: Tensor, alpha: Tensor, beta: Tensor) -> None:
        known = torch.isin(self.ids, ids)
        ids = torch.cat([self.ids[~known], ids])
        counts = torch.cat([self.counts[~known], torch.stack([alpha, beta], dim=1).double()])
        order = torch.argsort(ids)
        self.ids, self.counts = ids[order], counts[order]

    def update(self, table: Table) -> None:
        reward_M = self._reward(table)
        scored_M = reward_M.isfinite()
        ids, visit_M = torch.unique(table.columns["prompt_id"][scored_M], return_inverse=True)
        self.visited.update(ids.tolist())
        reward_M = reward_M[scored_M]
        memory_P: Tensor | float = self.constant_memory
        if self.shift_column:
            shift_M = table.columns[self.shift_column].double()[scored_M]
            memory_P = tracker_memory(group_mean(shift_M, visit_M).nan_to_num(), half_life=self.half_life)
        old_P2 = self._counts(ids)
        total_P, rows_P = group_sum(reward_M, visit_M), torch.bincount(visit_M, minlength=len(ids))
        self.set_counts(ids, memory_P * old_P2[:, 0] + total_P, memory_P * old_P2[:, 1] + rows_P - total_P)

    def state_dict(self) -> dict[str, Any]:
        self._read_probes()
        return {"ids": self.ids.tolist(), "counts": self.counts.tolist(), "visited": sorted(self.visited)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.unread = False
        self.ids = torch.tensor(state["ids"], dtype=torch.int64)
        self.counts = torch.tensor(state["counts"], dtype=torch.float64).reshape(-1, 2)
        self.visited = set(state["visited"])

    def metrics(self) -> dict[str, float]:
        """Of the prompts that were asked."""
        asked = torch.tensor(sorted(self.visited), dtype=torch.int64)
        value = float(self.values(asked).mean()) if len(asked) else 0.5
        return {"tracker/prompts": float(len(asked)), "tracker/value_mean": value}

    def success(self, reward: Tensor) -> Tensor:
        """Rewards mapped from [low, high] to [0, 1], any shape."""
        return ((reward.double() - self.low) / (self.high - self.low)).clamp(0, 1)

    def _reward(self, table: Table) -> Tensor:
        (total_M,) = WeightedSum()(table).values.values()
        return self.success(total_M)

    def _read_probes(self) -> None:
        """Once, and not before it is needed: whoever only evaluates or samples does without the file."""
        if self.unread and self.probes is not None:
            found = read_probes(Path(self.probes))
            tried_P2 = torch.tensor(list(found.values()), dtype=torch.float64).reshape(-1, 2)
            self._set(id_numbers(list(found)), *initial_counts(tried_P2[:, 0], tried_P2[:, 1]))
        self.unread = False

    def _counts(self, prompt_id_N: Tensor) -> Tensor:
        """[N, 2]"""
        self._read_probes()
        found_N2 = torch.full((len(prompt_id_N), 2), self.start, dtype=torch.float64)
        if len(self.ids):
            at_N = torch.searchsorted(self.ids, prompt_id_N).clamp_max(len(self.ids) - 1)
            known_N = self.ids[at_N] == prompt_id_N
            found_N2 = torch.where(known_N[:, None], self.counts[at_N], found_N2)
        return found_N2


@dataclass(eq=False)
class TrackedPrior(ValueTracker):
    """The value of a `ValueTracker` as the column `prior`, for {kind: shrinkage}, where there is no value model; it goes first.

    Source: the tracker of arXiv:2509.13232 (SPO) as the prior of arXiv:2603.10848 (V_0.5): ours.
    """

    def __call__(self, table: Table) -> Table:
        prior_M = self.values(table.columns["prompt_id"])
        return replace(table, columns={**table.columns, "prior": prior_M})
