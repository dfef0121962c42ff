"""Groups that teach nothing are left out: dynamic sampling's choice, for the groups that a step has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import CONSTANT
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_count, group_ids
from grpo_mm.rollout.table import Table


def useful_groups(
    metric_N: Tensor, group_N: Tensor, *, drop: Literal["constant", "best"] = "constant", best: float = 1.0
) -> Tensor:
    """[number of groups] bool, in the order of the group ids: True where a group may teach something.

    Args:
        metric_N: [N] what groups are chosen by (accuracy, not the shaped reward); NaN rows take no part.
        drop: "constant" drops groups whose metric does not vary; "best" only those that are all at `best` or above, so that
            all-wrong groups stay (arXiv:2509.18851, NGRPO).

    Returns:
        False also for a group with less than two numbers to compare.

    Source: arXiv:2503.14476 (DAPO), dynamic sampling. Grade A (verl).
    """
    group_N, metric_N = group_ids(group_N), metric_N.double()
    low, high = _ends(metric_N, group_N)
    varies = high - low > CONSTANT if drop == "constant" else low < best - CONSTANT
    return varies & (group_count(metric_N, group_N) > 1)


def first_useful(useful_G: Tensor, *, at_most: int | None) -> Tensor:
    """[number of groups] bool: the first `at_most` useful groups, None for all; the surplus is cut."""
    return useful_G if at_most is None else useful_G & (torch.cumsum(useful_G.long(), 0) <= at_most)


def _ends(value_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest finite value of each group."""
    num_groups = int(group_N.max()) + 1 if group_N.numel() else 0
    finite_N = torch.isfinite(value_N)
    low, high = (
        value_N.new_full((num_groups,), fill).scatter_reduce(0, group_N, value_N.where(finite_N, fill), reduce)
        for reduce, fill in (("amin", torch.inf), ("amax", -torch.inf))
    )
    return low, high


@dataclass(frozen=True)
class DropDegenerate:
    """Makes every value of a group that teaches nothing NaN, so that it is left out: before the reward is shaped.

    `metric`: the reward to choose by, may have weight 0; None: the only one. `at_most`: keep so many useful groups and cut
    the surplus. To sample until there are enough is the collector's part: {kind: dynamic_sampling}.
    """

    metric: str | None = None
    """The reward to choose by; null: the only one."""
    drop: Literal["constant", "best"] = "constant"
    """constant: groups whose rewards are all equal go; best: only those that are all at `best`."""
    best: float = 1.0
    """The highest value of that reward."""
    at_most: int | None = None
    """Useful groups that are kept; null: all."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    min_group_size = 2

    def __post_init__(self) -> None:
        if self.at_most is not None and self.at_most < 1:
            raise ValueError(f"at_most = {self.at_most}; wanted at least 1, or null for all.")

    def __call__(self, table: Table) -> Table:
        name = next(iter(table.values)) if self.metric is None and len(table.values) == 1 else self.metric
        if name not in table.values:
            raise ConfigError(
                f"drop_degenerate: metric = {self.metric}; there are {', '.join(sorted(table.values))}. Name the reward that "
                "groups are chosen by; it may have weight: 0."
            )
        group_M = table.key(self.key)
        useful_G = useful_groups(table.values[name], group_M, drop=self.drop, best=self.best)
        kept_M = first_useful(useful_G, at_most=self.at_most)[group_M]
        return table.with_values({name: value.where(kept_M, torch.nan) for name, value in table.values.items()})
