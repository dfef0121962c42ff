"""Several reward components to one value, and a bound on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.rollout.table import Table


def weighted_sum(value_NK: Tensor, weight_K: Sequence[float]) -> Tensor:
    """Σ_k w_k · value_k over the components that apply to a row, [N, K] -> [N]; NaN where none does.

    Before `group_norm` it sums raw rewards (Flow-GRPO); after it, normalised ones (DanceGRPO, MixGRPO, Pref-GRPO).
    """
    weight = torch.as_tensor(weight_K, dtype=value_NK.dtype)
    applies_NK = torch.isfinite(value_NK)
    total_N = (value_NK.where(applies_NK, 0) * weight).sum(dim=1)
    return torch.where(applies_NK.any(dim=1), total_N, torch.nan)


@dataclass(frozen=True)
class WeightedSum:
    """Sums the components with the weights of the `rewards` section. A row one of whose rewards failed becomes NaN."""

    min_group_size = 1

    def __call__(self, table: Table) -> Table:
        names = list(table.values)
        total_M = weighted_sum(
            torch.stack([table.values[name] for name in names], dim=1), [table.weights.get(name, 1.0) for name in names]
        )
        return table.with_values({"total": torch.where(table.columns["failed"], torch.nan, total_M)})


@dataclass(frozen=True)
class Clamp:
    """Bounds every value to [-limit, limit]; 5 in the Flow-GRPO family."""

    limit: float = 5.0
    """The largest absolute value."""

    min_group_size = 1

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"limit = {self.limit}; wanted above 0.")

    def __call__(self, table: Table) -> Table:
        return table.with_values({k: v.clamp(-self.limit, self.limit) for k, v in table.values.items()})
