"""Carries out a tree: all latents of one depth together, over prompts, branches and steps, in batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.flow.record import Logprob, logprob_of, transition
from grpo_mm.pipelines.flow.solver import Solver
from grpo_mm.pipelines.flow.trees.tree import Tree
from grpo_mm.processes.progress import report
from grpo_mm.types import join_items

Network = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]
"""(latents [n, ...], σ [n], place of the prompt [n]) -> "velocity" [n, ...], and what else may be kept, [n, ...] each."""


@dataclass(frozen=True)
class Moves:
    """How latents move: one kernel where there is noise, one solver elsewhere."""

    sigma_S1: Tensor
    """float32, on the device."""
    kernel: Callable[..., tuple[Tensor, Tensor]]
    logprob: Logprob
    solver: Solver


@dataclass(frozen=True)
class Grown:
    """What a tree left. Q = P · V numbers the nodes of all P local prompts: prompt · V + node."""

    latent_K: Tensor
    """[K, ...] the latents that were asked for."""
    node_K: Tensor
    """[K] int64 in Q, ascending depth."""
    logprob_Q: Tensor
    """[Q] of the step that leads to a node; 0 where it is deterministic."""
    network_K: Mapping[str, Tensor]
    """What was asked for of the network, [K, ...] each: 0 where it did not run."""
    items: Any
    """[U, ...] what `finish` made of the finished latents."""
    node_U: Tensor
    """[U] int64 in Q."""


def needed_nodes(tree: Tree, wanted_PV: Tensor) -> Tensor:
    """[P, V] bool: the wanted nodes and all that they grow from."""
    needed = wanted_PV.clone()
    for depth in range(int(tree.depth_V.max()), 0, -1):
        node = torch.nonzero(tree.depth_V == depth).flatten()
        prompt, here = torch.nonzero(needed[:, node], as_tuple=True)
        needed[prompt, tree.parent_V[node[here]]] = True
    return needed


@torch.no_grad()
def grow(
    tree: Tree,
    wanted_PV: Tensor,
    keep_PV: Tensor,
    *,
    roots: Tensor,
    moves: Moves,
    network: Network,
    normal: Callable[[list[tuple[int, int]], Tensor], Tensor],
    finish: Callable[[Tensor], Any],
    batch: int,
    keep_network: Sequence[str],
) -> Grown:
    """Grows the wanted nodes of every prompt from their initial latents.

    Args:
        wanted_PV: [P, V] bool, nodes that must exist; finished ones (σ = 0) go to `finish`, depth by depth.
        keep_PV: [P, V] bool, nodes whose latents are returned.
        roots: [P, R, ...] the initial latents; the tree's first R nodes.
        normal: [(prompt, node)] and an example [n, ...] -> standard normal latents of named streams.
        batch: latents in one forward.
        keep_network: names of what the network gives that is returned beside the latents.
    """
    size = tree.parent_V.numel()
    needed = needed_nodes(tree, wanted_PV)
    children = torch.zeros_like(needed)
    prompt, node = torch.nonzero(needed & (tree.parent_V >= 0), as_tuple=True)
    children[prompt, tree.parent_V[node]] = True
    last = moves.sigma_S1.numel() - 1
    device = roots.device

    found: dict[str, list[Any]] = {"latent": [], "node": [], "items": [], "node_U": []}
    said: dict[str, list[Tensor]] = {name: [] for name in keep_network}
    logprob_Q = torch.zeros(needed.numel(), dtype=roots.dtype, device=device)
    place_Q = torch.full((needed.numel(),), -1)
    is_root = tree.depth_V == 0
    prompt, node = torch.nonzero(needed & is_root, as_tuple=True)
    wave = _Wave(prompt, node, roots[prompt.to(device), node.to(device)], None)
    grown = 0
    while len(wave.node):
        q = wave.prompt * size + wave.node
        place_Q[q] = torch.arange(len(q))
        grown += len(q)
        report("sampling, latents", grown, int(needed.sum()))
        done = (tree.level_V[wave.node] == last) & ~children[wave.prompt, wave.node]
        if done.any():
            found["items"].append(finish(wave.latent[done.to(device)]))
            found["node_U"].append(q[done])
        prompt_E, node_E = torch.nonzero(needed & (tree.depth_V == int(tree.depth_V[wave.node[0]]) + 1), as_tuple=True)
        edges = _Edges(prompt_E, node_E, place_Q[prompt_E * size + tree.parent_V[node_E]])
        said_W = {name: torch.zeros_like(wave.latent) for name in ("velocity", *keep_network)}
        following, logprob_E = _advance(
            tree, wave, edges, moves, network=network, normal=normal, batch=batch, said_W=said_W
        )
        logprob_Q[(prompt_E * size + node_E).to(device)] = logprob_E
        kept = torch.nonzero(keep_PV[wave.prompt, wave.node]).flatten()
        found["latent"].append(wave.latent[kept.to(device)])
        found["node"].append(q[kept])
        for name, waves in said.items():
            waves.append(said_W[name][kept.to(device)])
        wave = following
    return Grown(
        latent_K=torch.cat(found["latent"]),
        node_K=torch.cat(found["node"]),
        logprob_Q=logprob_Q,
        network_K={name: torch.cat(waves) for name, waves in said.items()},
        items=join_items(found["items"]),
        node_U=torch.cat(found["node_U"]),
    )


@dataclass(frozen=True)
class _Wave:
    """The nodes of one depth with their latents, and for the solver the level and clean estimate of their parents."""

    prompt: Tensor
    node: Tensor
    latent: Tensor
    before: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class _Edges:
    """The steps from a wave to the next one."""

    prompt: Tensor
    node: Tensor
    """[E] int64, where they lead."""
    parent: Tensor
    """[E] int64, where they start: place in the wave."""


def _advance(
    tree: Tree, wave: _Wave, edges: _Edges, moves: Moves, *, network: Network,
    normal: Callable[[list[tuple[int, int]], Tensor], Tensor], batch: int, said_W: Mapping[str, Tensor],
) -> tuple[_Wave, Tensor]:  # fmt: skip
    """The next wave, and the log-probability of each edge (0: no noise). What the network says is written into `said_W`."""
    device, x_W = wave.latent.device, wave.latent
    next_E = x_W.new_zeros(len(edges.node), *x_W.shape[1:])
    clean_E, logprob_E = torch.zeros_like(next_E), x_W.new_zeros(len(edges.node))
    starts = edges.parent.unique()
    for chunk in starts.split(batch) if len(starts) else ():
        there = chunk.to(device)
        sigma = moves.sigma_S1[tree.level_V[wave.node[chunk]].to(device)].to(x_W)
        said = network(x_W[there], sigma, wave.prompt[chunk].to(device))
        for name, said_w in said_W.items():
            said_w[there] = said[name]
        velocity = said["velocity"]
        here = torch.nonzero(torch.isin(edges.parent, chunk)).flatten()
        clean = x_W[there] - sigma.view(-1, *([1] * (x_W.dim() - 1))) * velocity
        clean_E[here.to(device)] = clean[torch.searchsorted(chunk, edges.parent[here]).to(device)]
        for alike in _alike(tree, wave, edges, here):
            at, source = alike.to(device), edges.parent[alike].to(device)
            next_E[at], logprob = _move(
                tree, wave, edges, alike, moves, x_W[source], said_W["velocity"][source], normal=normal
            )
            if logprob is not None:
                logprob_E[at] = logprob
    before = (tree.level_V[wave.node[edges.parent]], clean_E) if len(edges.node) else None
    return _Wave(edges.prompt, edges.node, next_E, before), logprob_E


def _alike(tree: Tree, wave: _Wave, edges: _Edges, here: Tensor) -> list[Tensor]:
    """The edges in sets with the same σ before, at and after the step, and the same noise level."""
    parent, node = edges.parent[here], edges.node[here]
    before = torch.full_like(parent, -1) if wave.before is None else wave.before[0][parent]
    levels = torch.unique(tree.noise_V, return_inverse=True)[1]
    key = torch.stack([before, tree.level_V[wave.node[parent]], tree.level_V[node], levels[node]], 1)
    group = torch.unique(key, dim=0, return_inverse=True)[1]
    return [here[group == g] for g in range(int(group.max()) + 1)] if len(here) else []


def _move(
    tree: Tree, wave: _Wave, edges: _Edges, alike: Tensor, moves: Moves, x: Tensor, velocity: Tensor, *,
    normal: Callable[[list[tuple[int, int]], Tensor], Tensor],
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Edges that are alike: the next latents, and their log-probabilities where there is noise."""
    parent, node = edges.parent[alike], edges.node[alike]
    sigma = moves.sigma_S1[tree.level_V[wave.node[parent[0]]]].to(x)
    sigma_next = moves.sigma_S1[tree.level_V[node[0]]].to(x)
    noise_level = tree.noise_V[node[0]]
    if noise_level == 0:
        history = []
        if wave.before is not None:
            history = [moves.sigma_S1[wave.before[0][parent[0]]].to(x), wave.before[1][parent.to(x.device)]]
        return moves.solver.step(x, velocity, sigma, sigma_next, history), None
    mean, std = transition(moves.kernel, x, velocity, sigma, sigma_next, noise_level)
    x_next = mean + std * normal(list(zip(edges.prompt[alike].tolist(), node.tolist(), strict=True)), x)
    # A step to σ' = 0 may have no noise at all (CPS); it is never trained.
    return x_next, logprob_of(moves.logprob, x_next, mean, std) if sigma_next > 0 else None
