"""The shape of a group's rollout: which latents there are, which share what, and what each picture credits.

Nodes are latents. A deterministic edge (ODE) to the same level exists once, so a prefix or a completion that several
samples share is computed once by construction. The network runs once for each node that has children: that number, times
the groups, is the cost of a rollout, known before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from grpo_mm.types import WHOLE_ROW

NO_ACTION = -1


@dataclass(frozen=True)
class Tree:
    """The rollout of one group. V nodes (parents before children), G samples, A actions, C credits.

    Example, two samples that branch at level 0 of a two-step grid, one root:
    parent_V = [-1, 0, 0, 1, 2], level_V = [0, 1, 1, 2, 2], noise_V = [0, .7, .7, 0, 0], action_GA = [[1], [2]],
    node_C = [3, 4], sample_C = [0, 1].
    """

    parent_V: Tensor
    """[V] int64; -1 for an initial latent."""
    level_V: Tensor
    """[V] int64, index into the schedule's σ."""
    noise_V: Tensor
    """[V] float32, noise level of the edge that leads to the node; 0 is an ODE step."""
    depth_V: Tensor
    """[V] int64, edges from the root."""
    draw_V: Tensor
    """[V] int64, names the noise of the edge: equal numbers are equal noise."""
    action_GA: Tensor
    """[G, A] int64, the node that an action of a sample leads to."""
    train_GA: Tensor
    """[G, A] bool; an edge that several samples share is trained by the first of them."""
    node_C: Tensor
    """[C] int64, the finished latent of a credit."""
    sample_C: Tensor
    action_C: Tensor
    """[C] int64, the action it credits, WHOLE_ROW or BASELINE."""
    tag_C: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Columns of the rows: [G] or [G, A]."""

    @property
    def credits_actions(self) -> bool:
        return bool((self.action_C != WHOLE_ROW).any())

    def rollout_calls(self) -> int:
        """Latents of a group that go through the network: those with children."""
        return self.parent_V[self.parent_V >= 0].unique().numel()

    def training_calls(self) -> int:
        """Latents of a group from which something trained starts; what branches at one latent shares its forward."""
        return self.parent_V[self.action_GA[self.train_GA]].unique().numel()

    def pictures(self) -> int:
        """Distinct pictures of a group."""
        return self.node_C.unique().numel()


class Branching(Protocol):
    """Makes the tree of a group of `group_size` samples from `seeds` initial latents (the group divides over them)."""

    def __call__(self, sigma_S1: Tensor, noise_level_S: Tensor, *, group_size: int, seeds: int) -> Tree: ...

    def check(self, *, steps: int, noisy: int, group_size: int, seeds: int) -> None:
        """Raises ConfigError where the sizes do not fit; `noisy`: trained steps."""
        ...


class Growing:
    """Builds a tree node by node."""

    def __init__(self, seeds: int) -> None:
        self._parent, self._level, self._noise, self._depth = [-1] * seeds, [0] * seeds, [0.0] * seeds, [0] * seeds
        self._ode: dict[tuple[int, int], int] = {}
        self._credits: list[tuple[int, int, int, int]] = []

    def ode(self, node: int, level: int) -> int:
        """The deterministic step from `node` to `level`; asked for twice it is the same node."""
        key = (node, level)
        if key not in self._ode:
            self._ode[key] = self._add(node, level, 0.0)
        return self._ode[key]

    def branch(self, node: int, level: int, noise: float) -> int:
        """A new stochastic step from `node` to `level`; an ODE step where the noise is 0."""
        return self._add(node, level, noise) if noise > 0 else self.ode(node, level)

    def through(self, node: int, levels: Sequence[int]) -> int:
        """Deterministic steps through `levels`, in order."""
        for level in levels:
            node = self.ode(node, level)
        return node

    def credit(self, node: int, *, sample: int, action: int = WHOLE_ROW, tag: int = 0) -> None:
        """The finished latent `node` tells what `action` of `sample` is worth."""
        self._credits.append((node, sample, action, tag))

    def _add(self, parent: int, level: int, noise: float) -> int:
        self._parent.append(parent)
        self._level.append(level)
        self._noise.append(noise)
        self._depth.append(self._depth[parent] + 1)
        return len(self._parent) - 1

    def tree(self, action_GA: Sequence[Sequence[int]], **columns: Tensor) -> Tree:
        """The finished tree; actions NO_ACTION are none."""
        action = torch.tensor(action_GA, dtype=torch.int64)
        parent, level = torch.tensor(self._parent), torch.tensor(self._level)
        node, sample, credited, tag = torch.tensor(self._credits, dtype=torch.int64).view(-1, 4).unbind(1)
        return Tree(
            parent_V=parent,
            level_V=level,
            noise_V=torch.tensor(self._noise),
            depth_V=torch.tensor(self._depth),
            draw_V=torch.arange(len(self._parent)),
            action_GA=action.clamp_min(0),
            train_GA=_first_use(action) & (action != NO_ACTION),
            node_C=node,
            sample_C=sample,
            action_C=credited,
            tag_C=tag,
            columns=columns,
        )


def _first_use(node_GA: Tensor) -> Tensor:
    """True where a node stands for the first time, row by row."""
    flat = node_GA.flatten().tolist()
    seen: set[int] = set()
    return torch.tensor([not (n in seen or seen.add(n)) for n in flat], dtype=torch.bool).view(node_GA.shape)
