"""OSPO: agents that act at the same time are each other's baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import group_norm
from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.table import Table


def fairness(reward_M: Tensor, scene_M: Tensor, time_M: Tensor, agent_M: Tensor) -> Tensor:
    """How much more equal a time step left the agents of a scene, [M]: minus the rise of the std of what each has earned so far.

    Args:
        reward_M: [M] of an agent at a time; an agent with a NaN is not counted in its scene, at any time.
        scene_M, time_M, agent_M: [M] integer. All agents of a scene count at all its times, from a std of 0 before the first.

    Source: arXiv:2507.15351 (OSPO), released code, grade A. That the std is over n, as that of the rewards is, is ours.
    """
    scene_M, time_M = group_ids(scene_M), group_ids(time_M)
    agent_M = group_ids(scene_M, group_ids(agent_M))
    agents, times = (int(ids.max()) + 1 if ids.numel() else 0 for ids in (agent_M, time_M))
    reward_AT = torch.zeros((agents, times), dtype=torch.float64)
    reward_AT.index_put_((agent_M, time_M), reward_M.double().nan_to_num(), accumulate=True)
    earned_AT = reward_AT.cumsum(1)
    scene_A = torch.zeros(agents, dtype=torch.int64).scatter(0, agent_M, scene_M)
    counts_A1 = torch.bincount(agent_M[reward_M.isnan()], minlength=agents)[:, None] == 0
    empty_BT = torch.zeros((int(scene_M.max()) + 1 if scene_M.numel() else 0, times), dtype=torch.float64)
    size_BT = empty_BT.index_add(0, scene_A, counts_A1.double().expand(-1, times)).clamp_min(1)
    mean_BT = empty_BT.index_add(0, scene_A, earned_AT * counts_A1) / size_BT
    square_AT = (earned_AT - mean_BT[scene_A]) ** 2 * counts_A1
    std_BT = (empty_BT.index_add(0, scene_A, square_AT) / size_BT).sqrt()
    return -std_BT.diff(dim=1, prepend=torch.zeros((len(std_BT), 1), dtype=torch.float64))[scene_M, time_M]


@dataclass(frozen=True)
class FleetNorm:
    """A = (r - mean of the fleet at that time) / (std + eps) + weight · fairness: no return, no critic.

    Rows of one prompt are one scene. `time` and `agent` name the columns: a row per decision declares both; rows of several
    scored actions (steps) have {time: action, agent: sample}. Where a time step pays everyone alike, fairness alone is left.

    Source: arXiv:2507.15351 (OSPO), grade A.
    """

    time: str = "time"
    """The column with the time step of each decision."""
    agent: str = "agent"
    """The column with the agent of each decision."""
    fairness_weight: float = 1.0
    """Of the fairness term; 0: none."""
    eps: float = 1e-8
    """Added to the spread that is divided by."""

    min_group_size = 2
    why = "It compares what many agents earned at one time: give `time` and `agent`, or {time: action, agent: sample}."

    def __post_init__(self) -> None:
        not_below_zero(eps=self.eps, fairness_weight=self.fairness_weight)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.time, self.agent})

    def __call__(self, table: Table) -> Table:
        group_M, scene_M = table.key(("prompt", "tag", self.time)), table.key(("prompt", "tag"))
        time_M, agent_M = table.columns[self.time], table.columns[self.agent]
        return table.with_values(
            {
                name: group_norm(reward_M, group_M, eps=self.eps)
                + self.fairness_weight * fairness(reward_M, scene_M, time_M, agent_M)
                for name, reward_M in table.values.items()
            }
        )
