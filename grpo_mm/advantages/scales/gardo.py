"""GARDO: hold back the samples whose reward nobody else confirms, and pay more for what differs from its neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_mm.advantages.combination.combine import WeightedSum
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.table import TRAINED, Table


def batch_win_rate(score_M: Tensor) -> Tensor:
    """The share of the other scores of the batch that each one beats, ties half, [M]; NaN where there is no score."""
    finite_M = torch.isfinite(score_M)
    ordered = score_M[finite_M].sort().values
    below = torch.searchsorted(ordered, score_M.nan_to_num(), right=False)
    not_above = torch.searchsorted(ordered, score_M.nan_to_num(), right=True)
    rate_M = (below + not_above - 1) / 2 / max(1, len(ordered) - 1)
    return torch.where(finite_M, rate_M.to(score_M.dtype), torch.nan)


def uncertainty(score_M: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """U = w(R̃) - mean over n of w(R̂_n), [M]: how much better the optimised reward ranks a sample than the others do.

    Source: arXiv:2512.24138 (GARDO), section 4.1.
    """
    return batch_win_rate(score_M) - torch.stack([batch_win_rate(other_M) for other_M in others.values()]).nanmean(0)


@dataclass(frozen=True)
class GardoGate:
    """Marks the `share` most uncertain samples in a column, by which `kl` holds them back: {kind: kl, gate: kl_gate}.

    `against`: rewards of weight 0 that only serve to doubt the others. They leave the table here, so it stands first.
    """

    against: tuple[str, ...]
    """Names of rewards of weight 0 that doubt the others."""
    share: float = 0.1
    """Of the samples, the part that is marked, in [0, 1]."""
    column: str = "kl_gate"
    """The column that is made."""

    @property
    def makes(self) -> frozenset[str]:
        """Columns that are for the objective: without a term that reads them the stage does nothing."""
        return frozenset({self.column})

    min_group_size = 1

    def __post_init__(self) -> None:
        if not self.against or not 0 < self.share <= 1:
            raise ValueError(
                f"against = {list(self.against)}, share = {self.share}; wanted rewards, and a share in (0, 1]."
            )

    def __call__(self, table: Table) -> Table:
        if self.column in table.columns or self.column == TRAINED:
            raise ConfigError(f"gardo_gate: the table has a column {self.column!r} of its own; choose another name.")
        others, optimised = _split(table, self.against, "gardo_gate")
        (total_M,) = WeightedSum()(table.with_values(optimised)).values.values()
        doubt_M = uncertainty(total_M, others)
        count = max(1, round(self.share * len(table)))
        gate_M = torch.zeros(len(table), dtype=torch.float64)
        gate_M[torch.argsort(-doubt_M.nan_to_num(nan=-torch.inf), stable=True)[:count]] = 1.0
        return replace(table, values=optimised, columns={**table.columns, self.column: gate_M})


def diversity_scaled(advantage_M: Tensor, distance_M: Tensor) -> Tensor:
    """Positive advantages times the distance to the nearest neighbour, the others as they are, [M].

    Source: arXiv:2512.24138 (GARDO), section 4.3, distance: cosine distance of features within the group.
    """
    return torch.where(advantage_M > 0, advantage_M * distance_M, advantage_M)


@dataclass(frozen=True)
class DiversityScale:
    """`diversity_scaled` by the component `by`, a reward of weight 0 such as {use: nearest_neighbour}.

    It stands after the `group_norm` of the others, which is told to `skip` that component.
    """

    by: str
    """The reward that measures how far a sample lies from its neighbours."""

    min_group_size = 2

    def __call__(self, table: Table) -> Table:
        distance, others = _split(table, (self.by,), "diversity_scale")
        scaled = {name: diversity_scaled(value_M, distance[self.by]) for name, value_M in others.items()}
        return table.with_values(scaled)


def _split(table: Table, names: tuple[str, ...], stage: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    absent = [name for name in names if name not in table.values]
    if absent or len(names) == len(table.values):
        raise ConfigError(
            f"{stage}: wanted the rewards {', '.join(names)} beside at least one other, found {', '.join(table.values)}. "
            "Put them under `rewards` with weight: 0."
        )
    weighted = [name for name in names if table.weights.get(name, 0.0)]
    if weighted:
        raise ConfigError(
            f"{stage}: the reward {weighted[0]!r} serves only here, but has weight {table.weights[weighted[0]]:g}, as if it were "
            "optimised. Give it weight: 0."
        )
    inside = {name: table.values[name] for name in names}
    return inside, {name: value for name, value in table.values.items() if name not in names}
