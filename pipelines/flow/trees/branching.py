"""Trees of the methods in use: which samples share what, where they branch, what each picture credits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.noise import trained_steps
from grpo_mm.pipelines.flow.trees.tree import NO_ACTION, Growing, Tree
from grpo_mm.registry import Role
from grpo_mm.types import BASELINE


@dataclass(frozen=True)
class Chains:
    """Every sample goes its own way from the first noisy step on: Flow-GRPO, DanceGRPO, MixGRPO.

    What lies before that step is deterministic: samples of one initial latent share it (Flow-GRPO-Fast's branching).
    """

    def __call__(self, sigma_S1: Tensor, noise_level_S: Tensor, *, group_size: int, seeds: int) -> Tree:
        growing = Growing(seeds)
        action_GA = []
        for sample in range(group_size):
            path = walk(growing, seed_of(sample, group_size=group_size, seeds=seeds), noise_level_S)
            action_GA.append([path[i + 1] for i in trained_steps(noise_level_S, sigma_S1)])
            growing.credit(path[-1], sample=sample)
        return growing.tree(action_GA, seed=seed_column(group_size, seeds))

    def check(self, *, steps: int, noisy: int, group_size: int, seeds: int) -> None:
        pass


def seed_of(sample: int, *, group_size: int, seeds: int) -> int:
    """Samples of one initial latent stand next to each other."""
    return sample * seeds // group_size


def walk(growing: Growing, node: int, noise_level_S: Tensor) -> list[int]:
    """The nodes of one sample from its root to σ = 0, S + 1 of them."""
    path = [node]
    for step, noise in enumerate(noise_level_S.tolist()):
        path.append(growing.branch(path[-1], step + 1, noise))
    return path


def seed_column(group_size: int, seeds: int) -> Tensor:
    """[G] which initial latent a sample starts from."""
    return torch.tensor([seed_of(g, group_size=group_size, seeds=seeds) for g in range(group_size)])


@dataclass(frozen=True)
class SingleSteps:
    """One stochastic step at a time from an ODE trajectory, each branch finished by the ODE: G²RPO, TempFlow-GRPO.

    At every noisy step k, all samples of an initial latent branch at the same point of its ODE trajectory; the picture of
    a branch credits that step alone. `granularity`: the λ of the completions; a branch is finished once for each, on the
    grid that goes from σ_{k+1} to σ_{k+2} and then to every λ-th σ; the picture is x̂0 of its last network call, since with
    λ > 1 the grid may miss σ = 0. The tag of an output is its λ. Calls on the common part of two grids are made once.

    Source: arXiv:2510.01982 (G²RPO), section 3 and released code, Λ = {1, 2, 3} in the paper and {1, 2} in the scripts;
    arXiv:2508.04324 (TempFlow-GRPO), section 3.1, with Λ = {1}.
    """

    granularity: tuple[int, ...] = (1,)
    """Λ: strides of the grids on which a branch is finished; 1: every σ."""

    def __post_init__(self) -> None:
        if not self.granularity or min(self.granularity) < 1 or len(set(self.granularity)) < len(self.granularity):
            raise ConfigError(f"granularity = {list(self.granularity)}; wanted different whole numbers of at least 1.")

    def __call__(self, sigma_S1: Tensor, noise_level_S: Tensor, *, group_size: int, seeds: int) -> Tree:
        growing, last = Growing(seeds), noise_level_S.numel()
        chosen = trained_steps(noise_level_S, sigma_S1)
        action_GA = [[NO_ACTION] * len(chosen) for _ in range(group_size)]
        trunk = list(range(seeds))
        for k in range(chosen[-1] + 1):
            for sample in range(group_size) if k in chosen else ():
                node = growing.branch(
                    trunk[seed_of(sample, group_size=group_size, seeds=seeds)], k + 1, float(noise_level_S[k])
                )
                action_GA[sample][chosen.index(k)] = node
                for granularity in self.granularity:
                    end = growing.through(node, completion(k + 1, last, granularity))
                    growing.credit(end, sample=sample, action=chosen.index(k), tag=granularity)
            if k < chosen[-1]:
                trunk = [growing.ode(node, k + 1) for node in trunk]
        return growing.tree(action_GA, seed=seed_column(group_size, seeds))

    def check(self, *, steps: int, noisy: int, group_size: int, seeds: int) -> None:
        if max(self.granularity) >= steps:
            raise ConfigError(
                f"granularity = {list(self.granularity)} with {steps} denoising steps; wanted below {steps}: coarser completions are "
                "all the same."
            )
        if group_size == seeds > 1:
            raise ConfigError(
                f"single_steps compares branches of one initial latent, but engine.seeds = {seeds} gives every sample of the "
                "group its own. Use engine.seeds=1, or a divisor of group_size (TempFlow-GRPO: 4 seeds × 6 branches)."
            )


def completion(level: int, last: int, granularity: int) -> list[int]:
    """The levels an ODE completion from `level` steps to: the next one, every λ-th after it, and then σ = 0 at once.

    Example: level 5 of 10, λ = 2 visits 6 and 8, then 10; with 9 as the last level it visits 6, then 9.
    """
    visited = list(range(level + 1, last + 1, granularity))
    return [*visited[:-1], last] if visited else []


@dataclass(frozen=True)
class CleanImages:
    """Chains whose every stochastic step is scored before and after, by finishing the latent with the ODE: DenseGRPO.

    A latent at level t is finished in n = `completion_steps` network calls (None: all that remain), the first of which the
    trajectory makes anyway. n = 1 scores x̂0. Use the stage {kind: gains} to turn the scores into gains of steps; what a
    row starts from is scored too, as its baseline. With one initial latent a group shares that picture.

    Source: arXiv:2601.20218 (DenseGRPO), section 4.1. With fewer calls than levels the levels are spread evenly over the
    indices of the schedule (the paper does not say how).
    """

    completion_steps: int | None = None
    """n: network calls that finish a latent; null: all that remain."""

    def __post_init__(self) -> None:
        if self.completion_steps is not None and self.completion_steps < 1:
            raise ConfigError(
                f"completion_steps = {self.completion_steps}; wanted at least 1, or null for all that remain."
            )

    def __call__(self, sigma_S1: Tensor, noise_level_S: Tensor, *, group_size: int, seeds: int) -> Tree:
        growing, last = Growing(seeds), noise_level_S.numel()
        chosen = trained_steps(noise_level_S, sigma_S1)
        action_GA = []
        for sample in range(group_size):
            root = seed_of(sample, group_size=group_size, seeds=seeds)
            path = walk(growing, root, noise_level_S[: chosen[-1] + 1])
            action_GA.append([path[i + 1] for i in chosen])
            start = growing.through(path[chosen[0]], self._levels(chosen[0], last))
            growing.credit(start, sample=sample, action=BASELINE)
            for action, step in enumerate(chosen):
                end = growing.through(path[step + 1], self._levels(step + 1, last))
                growing.credit(end, sample=sample, action=action)
        return growing.tree(action_GA, seed=seed_column(group_size, seeds))

    def _levels(self, level: int, last: int) -> list[int]:
        steps = last - level if self.completion_steps is None else min(self.completion_steps, last - level)
        return [level + round((last - level) * (i + 1) / steps) for i in range(steps)]

    def check(self, *, steps: int, noisy: int, group_size: int, seeds: int) -> None:
        pass


@dataclass(frozen=True)
class Splits:
    """A tree of stochastic steps: each node splits into `factor` children at the steps `at`; leaves are the samples.

    Elsewhere a noisy step has one child, and a step without noise is the ODE. `at` None: at every noisy step, which with
    a window is TreeGRPO's tree (factor 3, window 3: 27 leaves from 13 branching latents). `noise_scale` multiplies the
    noise level of a splitting step (BranchGRPO: 4.0, steps 0, 3, 6, 9, factor 2). An edge is an action of the first
    leaf below it; the stage {kind: tree_backup} gives it the value of all leaves below.

    Source: arXiv:2509.06040 (BranchGRPO), section 3; arXiv:2512.08153 (TreeGRPO). Whether BranchGRPO scales the noise
    alone or the noise level is uncertain: here it is the level, so that the density stays that of the kernel.
    """

    factor: int = 2
    """Children of a node at a step where it splits."""
    at: tuple[int, ...] | None = None
    """Denoising steps, counted from 0, at which every node splits; null: at every noisy step."""
    noise_scale: float = 1.0
    """Times the noise level at a step that splits."""

    def __post_init__(self) -> None:
        if self.factor < 2 or self.noise_scale <= 0:
            raise ConfigError(
                f"splits: factor = {self.factor}, noise_scale = {self.noise_scale}; wanted at least 2, above 0."
            )

    def __call__(self, sigma_S1: Tensor, noise_level_S: Tensor, *, group_size: int, seeds: int) -> Tree:
        growing = Growing(seeds)
        chosen = trained_steps(noise_level_S, sigma_S1)
        at = set(chosen if self.at is None else self.at)
        silent = sorted(at - set(chosen))
        if silent:
            raise ConfigError(
                f"splits at step {silent[0]}, but that step has no noise: its children would all be the same latent. Use splits "
                f"within the noisy steps ({chosen[0]} to {chosen[-1]} here), or at=null, which moves with them."
            )
        paths = [[seed] for seed in range(seeds)]
        for step, noise in enumerate(noise_level_S.tolist()):
            times = self.factor if step in at else 1
            level = noise * self.noise_scale if step in at else noise
            # Every path ends in a node of its own, but for ODE steps, of which there is one.
            paths = [[*path, growing.branch(path[-1], step + 1, level)] for path in paths for _ in range(times)]
        for sample, path in enumerate(paths):
            growing.credit(path[-1], sample=sample)
        action_GA = torch.tensor([[path[i + 1] for i in chosen] for path in paths])
        return growing.tree(action_GA.tolist(), seed=seed_column(len(paths), seeds), edge=action_GA)

    def check(self, *, steps: int, noisy: int, group_size: int, seeds: int) -> None:
        count = noisy if self.at is None else len(set(self.at))
        leaves = seeds * self.factor**count
        if leaves != group_size:
            raise ConfigError(
                f"splits: {seeds} initial latent(s) split {count} times by {self.factor} have {leaves} leaves, but group_size "
                f"= {group_size}. Every leaf is a sample: use group_size={leaves} and engine.seeds={seeds}, or other splits."
            )
        if self.at is not None and not all(0 <= step < steps - 1 for step in self.at):
            raise ConfigError(f"splits: at = {list(self.at)}; wanted steps from 0 to {steps - 2}.")


@dataclass(frozen=True)
class Unshared:
    """The rollout of another tree with nothing shared: every picture is sampled from its initial latent on its own.

    The same noise gives the same pictures and the same gradient; it is there to measure what sharing saves.
    """

    of: Annotated[Any, Role("tree")]
    """The tree whose samples are drawn one by one."""

    def __call__(self, sigma_S1: Tensor, noise_level_S: Tensor, *, group_size: int, seeds: int) -> Tree:
        tree = self.of(sigma_S1, noise_level_S, group_size=group_size, seeds=seeds)
        origin = list(range(seeds))  # of each new node
        parent, node_C = [-1] * seeds, []
        copy_of: dict[tuple[int, int], int] = {}  # (sample, node) -> its first copy
        for end, sample in zip(tree.node_C.tolist(), tree.sample_C.tolist(), strict=True):
            path = [end]
            while tree.parent_V[path[-1]] >= 0:
                path.append(int(tree.parent_V[path[-1]]))
            here = path.pop()
            for node in reversed(path):
                origin.append(node)
                parent.append(here)
                here = len(origin) - 1
                copy_of.setdefault((sample, node), here)
            node_C.append(here)
        of_V = torch.tensor(origin)
        action = [
            [copy_of.get((sample, node), 0) for node in nodes] for sample, nodes in enumerate(tree.action_GA.tolist())
        ]
        per_node = {name: getattr(tree, name)[of_V] for name in ("level_V", "noise_V", "depth_V", "draw_V")}
        return replace(
            tree, **per_node, parent_V=torch.tensor(parent), action_GA=torch.tensor(action), node_C=torch.tensor(node_C)
        )

    def check(self, *, steps: int, noisy: int, group_size: int, seeds: int) -> None:
        self.of.check(steps=steps, noisy=noisy, group_size=group_size, seeds=seeds)
