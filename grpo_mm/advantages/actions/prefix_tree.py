"""TEMPO: the responses of a group form a tree of prefixes, whose values say at which token a response turned.

Letters of this file: N responses   T tokens   G the largest group, its members in one order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from grpo_mm.advantages.baselines.group_norm import CONSTANT, group_norm
from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_ids, spread
from grpo_mm.rollout.table import Table
from grpo_mm.types import WHOLE_ROW

_CHUNK = 64
"""Tokens compared at a time: most responses part in the first chunk."""


def prefix_tree_td(reward_N: Tensor, token_NT: Tensor, group_N: Tensor) -> Tensor:
    """What each token changed of the value of the prefix before it, [N, T] float64: V(prefix with it) - V(prefix).

    V of a prefix is the mean reward of the responses of the group that start with it. So a token where nobody branches off is
    worth 0, and the tokens of a response that nobody repeats add up to reward - group mean.

    Args:
        reward_N: [N] any scale; NaN responses take no part and are NaN throughout.
        token_NT: [N, T] integer token ids of what the policy wrote, without the prompt; -1 after the end.
        group_N: [N] integer.

    Source: arXiv:2509.18314 (TEMPO, Prefix-to-Tree). Grade D: our reconstruction from the abstract and public reviews.
    """
    rows, length = token_NT.shape
    td_NT = torch.zeros((rows, length), dtype=torch.float64)
    if not td_NT.numel():
        return td_NT
    order, shared_NG, partner_NG = _shared_lengths(token_NT, group_ids(group_N))
    exists_NG = shared_NG >= 0
    reward_NG = torch.where(exists_NG, reward_N.double()[partner_NG], torch.nan)
    # A response's nodes from its leaf to the root: the others join in the order of what they share with it.
    shared_NG, by = shared_NG.sort(dim=1, descending=True, stable=True)
    reward_NG = reward_NG.gather(1, by)
    scored_NG = torch.isfinite(reward_NG)
    value_NG = reward_NG.nan_to_num().cumsum(1) / scored_NG.cumsum(1)
    joins = torch.zeros_like(shared_NG, dtype=torch.bool)
    joins[:, 1:] = (shared_NG[:, 1:] < shared_NG[:, :-1]) & (shared_NG[:, 1:] >= 0)
    last_NG = torch.searchsorted(-shared_NG, -shared_NG, right=True) - 1
    row, place = torch.nonzero(joins, as_tuple=True)
    position = shared_NG[row, place]
    turn = value_NG[row, place - 1] - value_NG[row, last_NG[row, place]]
    # Where a response has ended, only the others go on.
    turn = torch.where(token_NT[order[row], position] >= 0, turn, 0.0)
    td_NT[order[row], position] = turn
    td_NT[~torch.isfinite(reward_N)] = torch.nan
    return td_NT


def _shared_lengths(token_NT: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Responses in the order of their groups and tokens [N]; what each shares with each of its group, [N, G] in tokens (-1:
    there is no such member); and which response that is, [N, G]."""
    rows, length = token_NT.shape
    token = np.ascontiguousarray(token_NT.numpy())
    # Rows as strings of bytes: any fixed order of tokens puts equal prefixes next to each other.
    row_bytes = np.dtype((np.void, token.itemsize * length))
    by_token = torch.from_numpy(np.argsort(token.view(row_bytes)[:, 0], kind="stable"))
    order = by_token[torch.argsort(group_N[by_token], stable=True)]
    group = group_N[order]
    size = torch.bincount(group)
    start = (torch.cumsum(size, 0) - size)[group]
    member = torch.arange(int(size.max()))
    next_one = torch.full((rows,), -1)
    next_one[:-1] = torch.where(group[1:] == group[:-1], _common(token_NT, order[:-1], order[1:]), -1)
    after = _least_so_far(next_one, len(member))
    before = _least_so_far(next_one.roll(1).flip(0), len(member)).flip(0)
    apart = member - (torch.arange(rows) - start)[:, None]
    reach = (apart.abs() - 1).clamp_min(0)
    shared = torch.where(apart > 0, after.gather(1, reach), before.gather(1, reach)).masked_fill(apart == 0, length)
    return order, shared, order[(start[:, None] + member).clamp_max(rows - 1)]


def _least_so_far(value: Tensor, width: int) -> Tensor:
    """The minimum of the 1, 2, … `width` values from each place on, [N, width]; -1 beyond the end."""
    return torch.cat([value, value.new_full((width - 1,), -1)]).unfold(0, width, 1).cummin(1).values


def _common(token_NT: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """How many leading tokens each pair of responses has in common."""
    length = token_NT.shape[1]
    common = torch.full((len(left),), length)
    still = torch.arange(len(left))
    for begin in range(0, length, _CHUNK):
        chunk_NT = token_NT[:, begin : begin + _CHUNK]
        differs = chunk_NT[left[still]] != chunk_NT[right[still]]
        at, parts = differs.byte().argmax(1), differs.any(1)
        common[still[parts]] = begin + at[parts]
        still = still[~parts]
        if not len(still):
            break
    return common


@dataclass(frozen=True)
class PrefixTree:
    """A[i, t] = (r_i - mean + V(prefix with token t) - V(prefix)) / std: `group_norm` plus the turn at each token.

    It stands in the place of `group_norm`. A group whose rewards are all equal earns exactly 0. Where no prefix is shared the
    first token still counts twice: from the root straight to the leaf. Two responses with the same tokens share their leaf.

    Source: see `prefix_tree_td`; that the difference is divided by the std is confirmed by a public review. Grade D. The
    ddof and eps are ours.
    """

    ddof: Literal[0, 1] = 0
    """0: the standard deviation over n rows; 1: over n - 1."""
    eps: float = 1e-4
    """Added to the spread that is divided by."""

    min_group_size = 2
    columns = frozenset({"token"})
    why = "Only tokens form a tree of prefixes; denoising steps that branch have one of their own: {kind: tree_backup}."

    def __post_init__(self) -> None:
        not_below_zero(eps=self.eps)

    def __call__(self, table: Table) -> Table:
        name, reward_M = table.only_value("prefix_tree")
        if (table.columns["action"] != WHOLE_ROW).any():
            raise ConfigError("prefix_tree finds the credit of tokens from the reward of whole responses; score these.")
        group_M = table.key(("prompt", "tag"))
        advantage_M = group_norm(reward_M, group_M, ddof=self.ddof, eps=self.eps)
        std_M = spread(reward_M.double(), group_M, scale="std", ddof=self.ddof)
        td_MA = prefix_tree_td(reward_M, table.columns["token"], group_M).div_((std_M + self.eps)[:, None])
        td_MA[std_M <= CONSTANT] = 0.0
        return table.with_values({name: advantage_M}).plus_per_action(td_MA)
