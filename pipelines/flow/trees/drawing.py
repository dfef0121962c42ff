"""A group's tree in a few lines of text, for `show`."""

from __future__ import annotations

import torch

from grpo_mm.pipelines.flow.trees.tree import Tree
from grpo_mm.types import BASELINE


def drawing(tree: Tree, last: int, *, makes: str = "pictures") -> list[str]:
    """One line for the initial latents, one for each depth that branches or is scored differently, one for the sum.

    Depths at which nothing new happens are drawn together.
    """
    roots = int((tree.parent_V < 0).sum())
    lines = [f"tree of a prompt: {_count(roots, 'initial latent')}"]
    rows = [_depth(tree, depth, last) for depth in range(1, int(tree.depth_V.max()) + 1)]
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[start]:
            depth = f"depth {start + 1}" if i == start + 1 else f"depth {start + 1}–{i}"
            lines.append(f"  {depth:12s} {rows[start]}")
            start = i
    credits = tree.node_C.numel()
    base = int((tree.action_C == BASELINE).sum())
    what = "actions" if tree.credits_actions else "whole samples"
    lines.append(
        f"  {tree.pictures()} {makes} for {credits} credits of {what}{f' ({base} of them baselines)' * (base > 0)}; "
        f"{tree.rollout_calls()} latents through the network, {tree.training_calls()} again in training"
    )
    return lines


def _depth(tree: Tree, depth: int, last: int) -> str:
    here = tree.depth_V == depth
    noisy = here & (tree.noise_V > 0)
    parents = tree.parent_V[noisy].unique().numel()
    parts = []
    if noisy.any():
        levels = sorted({round(v, 3) for v in tree.noise_V[noisy].tolist()})
        parts.append(
            f"{_count(int(noisy.sum()), 'noisy step')} from {_count(parents, 'latent')}, noise {', '.join(f'{v:g}' for v in levels)}"
        )
    steps = here & ~noisy
    if steps.any():
        parts.append(_count(int(steps.sum()), "ODE step"))
    finished = here & (tree.level_V == last) & torch.isin(torch.arange(len(here)), tree.node_C)
    if finished.any():
        parts.append(f"{int(finished.sum())} finished")
    return "; ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
