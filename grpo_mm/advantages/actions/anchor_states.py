"""GiGPO: whole episodes are compared with each other, and steps with the other steps taken from the same state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.actions.reward_to_go import needs_positions, reward_to_go
from grpo_mm.advantages.actions.sum_tags import sum_within
from grpo_mm.advantages.baselines.group_norm import group_norm
from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.table import Table


def episode_advantage(
    reward_M: Tensor,
    task_M: Tensor,
    episode_M: Tensor,
    *,
    scale: Literal["std", "none"] = "std",
    once: bool = False,
    ddof: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """Each episode's total reward relative to its task's, at every step of the episode, [M] float64.

    Args:
        reward_M: [M] reward of a step; NaN makes its episode NaN.
        task_M: [M] integer, what episodes are compared within.
        episode_M: [M] integer, the episode of a step; a number names one episode of one task.
        once: each episode counts once in mean and spread. False counts it once for each of its steps, as released, so that
            long episodes weigh more.

    Source: arXiv:2505.10978 (GiGPO), eq. 4; weighting from forks of the released code, grade C.
    """
    episode_M = group_ids(episode_M)
    total_M = sum_within(reward_M.double(), episode_M)[episode_M]
    settings = dict(scale=scale, ddof=ddof, eps=eps)
    if not once:
        return group_norm(total_M, task_M, **settings)
    size = len(total_M)
    first = torch.full((int(episode_M.max()) + 1 if size else 0,), size)
    first = first.scatter_reduce(0, episode_M, torch.arange(size), "amin")
    return group_norm(total_M[first], task_M[first], **settings)[episode_M]


def anchor_advantage(
    return_M: Tensor,
    task_M: Tensor,
    state_M: Tensor,
    *,
    scale: Literal["std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """What each step's return is worth beside the other steps taken from the same state in the same task, [M] float64.

    A state met once, or whose returns are all equal, earns 0.

    Source: arXiv:2505.10978 (GiGPO), eq. 6 to 7; grade C.
    """
    return group_norm(return_M, group_ids(task_M, group_ids(state_M)), scale=scale, ddof=ddof, eps=eps)


@dataclass(frozen=True)
class AnchorStates:
    """A = A_episode + omega · A_anchor for each step; all tokens of a step share it.

    Rewards are those of steps, given at actions or, where a step is several tokens, at units; mostly 0 before the last. The
    rollout declares `state_key` [N, A], a hash of what was observed before action (or unit) a. Steps whose observations are
    merely similar (the released code has a threshold of .95, notes on the paper say .9) must be given one key by the
    environment. omega 0 with `once` is GRPO on episodes.

    Source: arXiv:2505.10978 (GiGPO), eq. 8; grade C. scale none and std are both in the paper and do equally well.
    """

    gamma: float = 0.95
    """Discount of later rewards from one step to the next, in [0, 1]."""
    omega: float = 1.0
    """Weight of the comparison of steps from one state."""
    scale: Literal["std", "none"] = "std"
    """Whether advantages are divided by the standard deviation."""
    once: bool = False
    """An episode counts once in mean and spread; false: once for each of its steps."""
    ddof: Literal[0, 1] = 1
    """0: the standard deviation over n rows; 1: over n - 1."""
    eps: float = 1e-6
    """Added to the spread that is divided by."""

    min_group_size = 2
    columns = frozenset({"state_key"})
    why = "It compares steps taken from one state, so the rollout must say which states were met again."

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma = {self.gamma}; wanted 0 to 1.")
        not_below_zero(eps=self.eps, omega=self.omega)

    def __call__(self, table: Table) -> Table:
        needs_positions(table, "anchor_states")
        task_M = table.key(("prompt", "tag"))
        episode_M = table.key(("prompt", "sample", "tag"))
        state_M = table.at_action("state_key")
        how = dict(scale=self.scale, ddof=self.ddof, eps=self.eps)

        def advantage(reward_M: Tensor) -> Tensor:
            whole_M = episode_advantage(reward_M, task_M, episode_M, once=self.once, **how)
            return_M = reward_to_go(reward_M, episode_M, table.columns["action"], gamma=self.gamma)
            return whole_M + self.omega * anchor_advantage(return_M, task_M, state_M, **how)

        return table.with_values({name: advantage(reward_M) for name, reward_M in table.values.items()})
