"""From the leaves of a tree to its edges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.masks.select import keep_extremes
from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_ids, group_mean
from grpo_mm.rollout.table import TRAINED, Table

Weights = Literal["mean", "softmax"]


def tree_backup(
    value_L: Tensor, edge_LA: Tensor, logprob_LA: Tensor, *, weights: Weights = "mean", temperature: float = 1.0
) -> Tensor:
    """The value of every edge on the path to each leaf, [L, A], from the values of the leaves below it.

    mean: of all leaves below an edge. softmax: from the last edges to the first, an edge is worth the mean of the edges
    that follow it, weighted by softmax(log-probability / temperature) over these siblings.

    Args:
        value_L: [L] values of leaves; NaN leaves take no part.
        edge_LA: [L, A] integer, the edge of each leaf at each action; a number names one edge of one tree.
        logprob_LA: [L, A] log-probability of the edge.

    Source: mean: arXiv:2509.06040 (BranchGRPO), section 3.2, uniform fusion; softmax: its path-weighted fusion and
    arXiv:2512.08153 (TreeGRPO), section 3.2. Whether the log-probability is a mean or a sum over latent elements is
    uncertain; ours is the mean over elements, with which the softmax is nearly uniform: temperature 1/D, D the elements of a
    latent, gives the sum, with which it is nearly one-hot.
    """
    edges = [group_ids(edge_A) for edge_A in edge_LA.unbind(1)]
    if weights == "mean":
        return torch.stack([group_mean(value_L, edge_L)[edge_L] for edge_L in edges], 1)
    below_L = value_L  # the value of what follows, the same for all leaves below one edge
    result = []
    for action in range(len(edges) - 1, -1, -1):
        edge_L, count = edges[action], int(edges[action].max()) + 1
        follows = group_ids(edges[action + 1]) if action + 1 < len(edges) else torch.arange(len(value_L))
        first = torch.full((int(follows.max()) + 1,), len(value_L)).scatter_reduce(
            0, follows, torch.arange(len(value_L)), "amin"
        )
        parent, value = edge_L[first], below_L[first]
        # What follows the last action is the leaf itself, by the ODE: all leaves of an edge weigh the same there.
        score = (
            logprob_LA[first, action + 1].double() / temperature if action + 1 < len(edges) else torch.zeros(len(first))
        )
        score = torch.where(value.isnan(), -torch.inf, score.to(value.dtype))
        top = torch.full((count,), -torch.inf, dtype=value.dtype).scatter_reduce(0, parent, score, "amax")
        weight = torch.where(value.isnan(), 0.0, (score - top[parent].nan_to_num(neginf=0.0)).exp())
        total = weight.new_zeros(count).index_add_(0, parent, weight)
        mean = weight.new_zeros(count).index_add_(0, parent, weight * value.nan_to_num()) / total
        below_L = mean[edge_L]
        result.append(below_L)
    return torch.stack(result[::-1], 1)


@dataclass(frozen=True)
class TreeBackup:
    """One table row per edge in place of one per leaf, worth what lies below it.

    Before `group_norm` with key [prompt, action] values are compared depth by depth inside a tree (BranchGRPO); after
    `group_norm` the advantages of leaves are carried up (TreeGRPO).

    keep: width pruning. Only edges on the way to some leaves are trained, after all were valued and compared: the `keep`/2
    best and worst leaves of a tree, or with keep = "best_of_split" the best of the leaves that part at the last split.

    Source: see `tree_backup`; pruning: arXiv:2509.06040, section 3.3.
    """

    weights: Weights = "mean"
    """An edge is worth the mean of the leaves below, or their mean weighted by softmax(log-probability / temperature)."""
    temperature: float = 1.0
    """Of that softmax, in units of log-probability."""
    keep: int | Literal["best_of_split"] | None = None
    """Leaves, or best_of_split, to which trained edges lead; null: all."""

    min_group_size = 2

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature}; wanted above 0.")
        if isinstance(self.keep, int) and (self.keep < 2 or self.keep % 2):
            raise ValueError(f"keep = {self.keep}; wanted an even number of at least 2.")

    def __call__(self, table: Table) -> Table:
        if "edge" not in table.columns:
            raise ConfigError("tree_backup needs a rollout that is a tree: use engine.tree={kind: splits, …}.")
        if self.keep is not None and len(table.values) != 1:
            raise ConfigError("tree_backup: keep chooses leaves by one value; put {kind: weighted_sum} before it.")
        leaves, actions = table.columns["edge"].shape
        edge_LA = _distinct(table.columns["prompt"], table.columns["edge"])
        settings = dict(weights=self.weights, temperature=self.temperature)
        values = {
            name: tree_backup(value_L, edge_LA, table.columns["edge_logprob"], **settings)
            for name, value_L in table.values.items()
        }
        kept_L = self._kept(table, edge_LA)
        flat = edge_LA.flatten()
        # An edge is an action of the first leaf that holds it, as the rollout trains it.
        first = torch.full((int(flat.max()) + 1,), flat.numel()).scatter_reduce(
            0, flat, torch.arange(flat.numel()), "amin"
        )
        trained = torch.zeros(len(first), dtype=torch.bool)
        trained[edge_LA[kept_L].flatten()] = True
        leaf, action = first // actions, first % actions
        rows = table.take(leaf)
        columns = {n: c for n, c in rows.columns.items() if c.dim() == 1} | {"action": action, TRAINED: trained}
        columns["failed"] = torch.stack([v.flatten()[first].isnan() for v in values.values()]).any(0)
        return replace(rows, values={n: v.flatten()[first] for n, v in values.items()}, columns=columns)

    def _kept(self, table: Table, edge_LA: Tensor) -> Tensor:
        if self.keep is None:
            return torch.ones(len(table), dtype=torch.bool)
        (value_L,) = table.values.values()
        if isinstance(self.keep, int):
            return keep_extremes(value_L, table.columns["prompt"], keep=self.keep)
        # The last action that leaves share; where they part at the first one, they share their initial latent.
        shared = [a for a in range(edge_LA.shape[1]) if edge_LA[:, a].unique().numel() < len(table)]
        parent_L = edge_LA[:, shared[-1]] if shared else table.key(("prompt", "seed"))
        order = torch.argsort(value_L.nan_to_num(nan=-torch.inf), descending=True, stable=True)
        best = torch.full((int(parent_L.max()) + 1,), len(table)).scatter_reduce(
            0, parent_L[order], torch.arange(len(table)), "amin"
        )
        kept_L = torch.zeros(len(table), dtype=torch.bool)
        kept_L[order[best[parent_L]]] = True
        return kept_L & torch.isfinite(value_L)


def _distinct(prompt_L: Tensor, edge_LA: Tensor) -> Tensor:
    """[L, A] numbers of edges that differ between trees and between actions."""
    action_LA = torch.arange(edge_LA.shape[1]).expand_as(edge_LA)
    keys = [k.flatten() for k in (prompt_L[:, None].expand_as(edge_LA), action_LA, edge_LA)]
    return group_ids(*keys).view(edge_LA.shape)
