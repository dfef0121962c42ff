"""Rows to trees and back: grows the trees of all prompts on this rank, and says where each row's nodes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.conditions import without_unreadable
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.pipelines.flow.sampling import encode_rows, initial_noise, sampling_velocity
from grpo_mm.pipelines.flow.trees.grow import Grown, Moves, grow
from grpo_mm.pipelines.flow.trees.tree import Tree
from grpo_mm.processes.rng import stream
from grpo_mm.types import WHOLE_ROW, Outputs, Rows


@dataclass(frozen=True)
class Forest:
    """One tree for each prompt of the rows, grown as far as these rows need."""

    tree: Tree
    grown: Grown
    condition: dict[str, Tensor]
    """[P, ...] each: what the network saw, one entry per prompt."""
    place_N: Tensor
    """[N] int64, which of the P trees a row belongs to."""
    sample_N: Tensor

    def number(self, node: Tensor) -> Tensor:
        """The number over all trees of a node of each row, [N, ...] -> [N, ...]."""
        place = self.place_N.view(-1, *([1] * (node.dim() - 1)))
        return place * self.tree.parent_V.numel() + node

    def kept(self, node: Tensor) -> Tensor:
        """Where in `grown.latent_K` a node of each row is, [N, ...]; 0 if its latent was not kept."""
        return _position(self.grown.node_K, self._size)[self.number(node)]

    def logprob(self, node: Tensor) -> Tensor:
        """Of the noisy step that leads to a node of each row, [N, ...], on the latents' device."""
        return self.grown.logprob_Q[self.number(node).to(self.grown.logprob_Q.device)]

    @property
    def _size(self) -> int:
        return self.grown.logprob_Q.numel()

    def outputs(self) -> Outputs:
        """The finished pictures, and what they say of each row."""
        tree = self.tree
        row_M, credit_M = torch.nonzero(tree.sample_C[None, :] == self.sample_N[:, None], as_tuple=True)
        end_M = self.place_N[row_M] * tree.parent_V.numel() + tree.node_C[credit_M]
        action_M, tag_M = tree.action_C[credit_M], tree.tag_C[credit_M]
        return Outputs(
            items=self.grown.items,
            row_M=row_M,
            action_M=None if (action_M == WHOLE_ROW).all() else action_M,
            tag_M=tag_M if tag_M.any() else None,
            item_M=_position(self.grown.node_U, self._size)[end_M],
        )


def grow_rows(
    policy: FlowPolicy,
    rows: Rows,
    tree: Tree,
    moves: Moves,
    *,
    keep: list[tuple[Tensor, Tensor]],
    step: int,
    seed: int,
    batch: int,
    keep_network: Sequence[str] = (),
) -> Forest:
    """Grows what the pictures of the rows and the nodes to keep need, and decodes the pictures.

    Args:
        keep: (node, mask) pairs, [N, ...] each: the latents of these nodes of each row are kept where the mask is True.
        keep_network: what is kept of the network there: "velocity", or "of_none", its unconditional half.
        step, seed: name the random streams; noise belongs to (prompt, initial latent) and (prompt, edge).
    """
    size = policy.size(evaluation=False)
    condition, place_N = encode_rows(policy, rows, size=size)
    place_N, nodes = place_N.cpu(), tree.parent_V.numel()
    prompts = [rows.prompts[p] for p in rows.prompt_N.unique().tolist()]
    keep_PV = torch.zeros(len(prompts), nodes, dtype=torch.bool)
    for node, mask in keep:
        place = place_N.view(-1, *([1] * (node.dim() - 1))).expand_as(node)
        keep_PV[place[mask], node[mask]] = True
    wanted_PV = keep_PV.clone()
    row_M, credit_M = torch.nonzero(tree.sample_C[None, :] == rows.sample_N[:, None], as_tuple=True)
    wanted_PV[place_N[row_M], tree.node_C[credit_M]] = True

    def network(x: Tensor, sigma: Tensor, place: Tensor) -> dict[str, Tensor]:
        here = {k: v[place] for k, v in condition.items()}
        velocity, of_none = sampling_velocity(policy, x, sigma, here, size=size)
        return {"velocity": velocity} | ({} if of_none is None else {"of_none": of_none})

    def normal(keys: list[tuple[int, int]], x: Tensor) -> Tensor:
        drawn = [stream(seed, "sde", step, prompts[p].id, int(tree.draw_V[node])) for p, node in keys]
        return torch.stack([torch.randn(x.shape[1:], generator=g) for g in drawn]).to(x)

    roots = int((tree.parent_V < 0).sum())
    keys = [(prompt, root) for prompt in prompts for root in range(roots)]
    start = initial_noise(policy, keys, seed=seed, step=step, size=size)
    grown = grow(
        tree, wanted_PV, keep_PV, roots=start.view(len(prompts), roots, *start.shape[1:]), moves=moves, network=network,
        normal=normal, finish=lambda latents: policy.decode(latents, size=size), batch=batch, keep_network=keep_network,
    )  # fmt: skip
    shown = [prompts[place] for place in (grown.node_U // nodes).tolist()]
    grown = replace(grown, items=without_unreadable(grown.items, shown, policy.unreadable))
    return Forest(tree, grown, condition, place_N, rows.sample_N)


def _position(number: Tensor, size: int) -> Tensor:
    """[size]: where each number stands; 0 for those that do not."""
    position = torch.zeros(size, dtype=torch.int64)
    position[number] = torch.arange(len(number))
    return position
