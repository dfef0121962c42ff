"""Graph-GRPO: what a choice is worth is the mean reward of the samples that made it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import group_norm
from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.table import Table


def choice_value(reward_N: Tensor, chosen_NE: Tensor, group_N: Tensor) -> Tensor:
    """The mean reward of the samples of each group that contain a choice, [groups, E]; NaN for one that none contains.

    Args:
        reward_N: [N] any scale; NaN samples take no part.
        chosen_NE: [N, E] bool, whether a sample contains choice e (an edge of a graph, a feature).
        group_N: [N] dense group ids.
    """
    scored_N = torch.isfinite(reward_N)
    chosen_NE = chosen_NE.bool() & scored_N[:, None]
    groups = int(group_N.max()) + 1 if group_N.numel() else 0
    shape = (groups, chosen_NE.shape[1])
    count = torch.zeros(shape, dtype=torch.int32).index_add_(0, group_N, chosen_NE.int())
    earned_NE = torch.where(chosen_NE, reward_N.double()[:, None], 0.0)
    return torch.zeros(shape, dtype=torch.float64).index_add_(0, group_N, earned_NE) / count


def choice_advantage(reward_N: Tensor, chosen_NE: Tensor, group_N: Tensor, *, eps: float = 1e-8) -> Tensor:
    """The value of each choice that a sample made, normalised over the choices of its group, [N, E]; 0 for those it did not make.

    NaN for a sample without a reward. Choices that no sample of a group made are not in its
    statistics; a group whose choices are all worth the same earns exactly 0.

    Source: arXiv:2603.02701 (Graph-GRPO), grade C; the std over n and eps are ours. The value is a correlation: a choice that
    only ever rides along with a good one is paid alike.
    """
    group_N = group_ids(group_N)
    value_BE = choice_value(reward_N, chosen_NE, group_N)
    row_BE = torch.arange(len(value_BE))[:, None].expand_as(value_BE)
    advantage_BE = group_norm(value_BE.flatten(), row_BE.flatten(), ddof=0, eps=eps).view_as(value_BE)
    earned_NE = torch.where(chosen_NE.bool(), advantage_BE[group_N], 0.0)
    return earned_NE.masked_fill_(~torch.isfinite(reward_N)[:, None], torch.nan)


@dataclass(frozen=True)
class ChoiceValue:
    """Each action that a row chose to take earns `choice_advantage`; the others earn 0.

    The rollout declares `chosen` [N, A] bool: action a is a yes-or-no choice (an edge of a graph) and the row said yes. A
    choice against an action is trained too, at 0: a KL term is over all that was decided. The rows themselves earn 0.
    """

    eps: float = 1e-8
    """Added to the spread that is divided by."""

    min_group_size = 2
    columns = frozenset({"chosen"})
    why = "It compares the samples that made a choice, so actions must be choices that several samples can share."

    def __post_init__(self) -> None:
        not_below_zero(eps=self.eps)

    def __call__(self, table: Table) -> Table:
        name, reward_M = table.only_value("choice_value")
        group_M = table.key(("prompt", "tag"))
        advantage_MA = choice_advantage(reward_M, table.columns["chosen"], group_M, eps=self.eps)
        return table.with_values({name: 0.0 * reward_M}).plus_per_action(advantage_MA)
