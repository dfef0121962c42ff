"""M-GRPO: one policy calls others, each of which is compared with its own kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import CONSTANT, is_constant, over
from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_ids, group_sum
from grpo_mm.rollout.table import Table


def sub_agent_reward(main_N: Tensor, valid_N: Tensor, *, partial: float = 0.1) -> Tensor:
    """What a sub-agent earns for the score of the rollout that called it, [N] float64: 0, `partial` or 1.

    Args:
        main_N: [N] score of the main rollout: 1 correct, .1 right in form only, 0 neither; NaN stays NaN.
        valid_N: [N] bool, whether the sub-agent's own answer has the right form. An invalid one earns 0.

    Source: arXiv:2511.13288 (M-GRPO), released code, grade A. It names the scores 0, .1 and 1 only; between .1 and 1 ours
    is 1.
    """
    main_N = main_N.double()
    earned_N = torch.ones_like(main_N).masked_fill(main_N <= partial + CONSTANT, partial)
    return earned_N.masked_fill(~valid_N.bool(), 0.0).masked_fill(main_N.isnan(), torch.nan)


def copies_norm(reward_N: Tensor, group_N: Tensor, copies_N: Tensor, *, ddof: int = 0, eps: float = 1e-4) -> Tensor:
    """`group_norm` in which rows that were repeated count once: each weighs 1/copies, in mean and std and in what it earns.

    Args:
        copies_N: [N] how often a row stands in its group, >= 1; rows that are the same stand there that often.

    Returns:
        [N] float64; the copies of a row earn together what it earns alone.

    Source: arXiv:2511.13288 (M-GRPO). Grade A for the groups, D for the repetition: the exact rule of the alignment is
    uncertain; that copies weigh 1/copies is ours.
    """
    reward_N, group_N = reward_N.double(), group_ids(group_N)
    weight_N = torch.where(torch.isfinite(reward_N), 1 / copies_N.double(), 0.0)
    total = group_sum(weight_N, group_N)
    mean = group_sum(weight_N * reward_N, group_N) / total
    centred_N = reward_N - mean[group_N]
    std = (group_sum(weight_N * centred_N**2, group_N) / torch.where(total > ddof, total - ddof, 1.0)).sqrt()
    # Rounding must not be divided by a tiny eps.
    centred_N = torch.where(is_constant(reward_N, group_N) & torch.isfinite(reward_N), 0.0, centred_N)
    return over(centred_N, std[group_N] + eps) / copies_N.double()


@dataclass(frozen=True)
class SubAgentReward:
    """Gives the rows of sub-agents the score of the main row that called them, by `sub_agent_reward`.

    The rollout declares `agent` [N] (0 the main one), `main` [N] (the sample number of the main row; its own for that) and
    `valid` [N] bool. What a reward says of sub-agents' rows themselves is not used.

    Source: arXiv:2511.13288 (M-GRPO), grade A.
    """

    partial: float = 0.1
    """What a sub-agent with a sound answer earns where the main row is right in form only."""

    def __post_init__(self) -> None:
        if not 0 <= self.partial <= 1:
            raise ValueError(f"partial = {self.partial}; wanted 0 to 1: what a row of the right form earns.")

    min_group_size = 1
    columns = frozenset({"agent", "main", "valid"})
    why = "It is for a policy that calls others: each row says which agent wrote it."

    def __call__(self, table: Table) -> Table:
        name, value_M = table.only_value("sub_agent_reward")
        if not len(table):
            return table
        prompt_M, sample_M, is_main_M = table.columns["prompt"], table.columns["sample"], table.columns["agent"] == 0
        row_2M = group_ids(prompt_M.repeat(2), torch.cat([sample_M, table.columns["main"]]))
        own_M, called_by_M = row_2M.chunk(2)
        main = torch.full((int(row_2M.max()) + 1,), -1)
        main[own_M[is_main_M]] = torch.nonzero(is_main_M).flatten()
        main_M = main[called_by_M]
        if (main_M < 0).any():
            row = int(torch.nonzero(main_M < 0)[0])
            raise ConfigError(
                f"sample {int(sample_M[row])} of prompt {int(prompt_M[row])} says it was called by sample "
                f"{int(table.columns['main'][row])}, which is no row of agent 0."
            )
        earned_M = sub_agent_reward(value_M[main_M], table.columns["valid"], partial=self.partial)
        return table.with_values({name: torch.where(is_main_M, value_M, earned_M)})


@dataclass(frozen=True)
class AgentNorm:
    """`copies_norm` of each agent's rows of a prompt, so that no group mixes agents or queries.

    The released code groups the rows of sub-agents as they arrive, whatever their query; ours does not. A rollout that repeats
    rows to a fixed count declares `copies`; ragged groups need no repetition here.

    Source: arXiv:2511.13288 (M-GRPO), grades A and D.
    """

    key: tuple[str, ...] = ("prompt", "agent")
    """The comparison set: columns of the table; rows that agree in all of them are compared."""
    ddof: Literal[0, 1] = 0
    """0: the standard deviation over n rows; 1: over n - 1."""
    eps: float = 1e-4
    """Added to the spread that is divided by."""

    min_group_size = 2
    why = "It is for a policy that calls others: each row says which agent wrote it."

    def __post_init__(self) -> None:
        not_below_zero(eps=self.eps)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(self.key)

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)
        copies_M = table.columns.get("copies", torch.ones(len(table)))
        if len(table) and float(copies_M.min()) < 1:
            raise ConfigError(
                f"agent_norm: the rollout declares copies = {float(copies_M.min()):g}; wanted 1 or more: how often a row stands "
                "in its group."
            )
        return table.with_values(
            {n: copies_norm(v, group_M, copies_M, ddof=self.ddof, eps=self.eps) for n, v in table.values.items()}
        )
