"""The trees of every kind of rollout: who shares what, what is trained, what each picture credits, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.noise import AllSteps, GeometricWindow, SlidingWindow, Window, trained_steps
from grpo_mm.pipelines.flow.schedule import Shifted
from grpo_mm.pipelines.flow.solver import DpmSolverPP
from grpo_mm.pipelines.flow.trees.branching import Chains, CleanImages, SingleSteps, Splits, Unshared, completion
from grpo_mm.pipelines.flow.trees.drawing import drawing
from grpo_mm.pipelines.flow.trees.tree import Branching, Tree
from grpo_mm.types import BASELINE, WHOLE_ROW


def make(kind: Branching, levels: list[float], *, group_size: int, seeds: int) -> Tree:
    sigma_S1 = Shifted()(len(levels), image_tokens=64)
    return kind(sigma_S1, torch.tensor(levels), group_size=group_size, seeds=seeds)


def edges(tree: Tree) -> list[tuple[int, int, float]]:
    """(parent, level, noise) of every node."""
    noise = [round(v, 6) for v in tree.noise_V.tolist()]
    return list(zip(tree.parent_V.tolist(), tree.level_V.tolist(), noise, strict=True))


def credits(tree: Tree) -> list[tuple[int, int, int, int]]:
    """(node, sample, action, tag) of every credit."""
    return list(zip(*(c.tolist() for c in (tree.node_C, tree.sample_C, tree.action_C, tree.tag_C)), strict=True))


# ── by hand ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_independent_chains_share_nothing():
    tree = make(Chains(), [0.7, 0], group_size=2, seeds=2)
    assert edges(tree) == [(-1, 0, 0), (-1, 0, 0), (0, 1, 0.7), (2, 2, 0), (1, 1, 0.7), (4, 2, 0)]
    assert tree.action_GA.tolist() == [[2], [4]]
    assert credits(tree) == [(3, 0, WHOLE_ROW, 0), (5, 1, WHOLE_ROW, 0)]
    assert (tree.rollout_calls(), tree.training_calls(), tree.pictures()) == (4, 2, 2)
    assert tree.columns["seed"].tolist() == [0, 1] and not tree.credits_actions


def test_chains_of_one_initial_latent_share_its_first_call():
    tree = make(Chains(), [0.7, 0.7, 0], group_size=3, seeds=1)
    assert tree.rollout_calls() == 1 + 3 + 3
    assert tree.training_calls() == 1 + 3
    assert tree.action_GA[:, 0].unique().numel() == 3 and tree.parent_V[tree.action_GA[:, 0]].tolist() == [0, 0, 0]


def test_what_lies_before_a_window_is_computed_once_for_an_initial_latent():
    tree = make(Chains(), [0, 0, 0.7, 0], group_size=4, seeds=2)
    assert tree.columns["seed"].tolist() == [0, 0, 1, 1]
    # Two prefixes of two calls, two calls at the branching point, and one more for each sample.
    assert tree.rollout_calls() == 2 * 2 + 2 + 4
    assert tree.training_calls() == 2
    assert tree.depth_V[tree.action_GA].unique().tolist() == [3]


def test_without_noise_samples_of_one_latent_are_one_picture():
    tree = make(Chains(), [0, 0], group_size=4, seeds=2)
    assert tree.pictures() == 2 and tree.action_GA.shape == (4, 0)


def test_noise_of_the_last_step_stays_in_the_picture_and_is_not_trained():
    tree = make(Chains(), [0.7, 0.7], group_size=2, seeds=2)
    assert tree.action_GA.shape == (2, 1)
    assert tree.noise_V[tree.node_C].tolist() == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize(
    "level, last, granularity, visited",
    [
        (5, 10, 1, [6, 7, 8, 9, 10]),
        # The grid 5, 6, 8, 10: the last call is made at 8, and its x̂0 is the picture.
        (5, 10, 2, [6, 8, 10]),
        # The grid 5, 6, 8 misses 9: the last executed call is at 6.
        (5, 9, 2, [6, 9]),
        # The grid 5, 6, 9 misses 10: again at 6.
        (5, 10, 3, [6, 10]),
        (4, 10, 3, [5, 10]),
        (3, 10, 3, [4, 7, 10]),
        (1, 16, 3, [2, 5, 8, 11, 16]),
        (9, 10, 3, [10]),
        (8, 10, 3, [10]),
        (10, 10, 2, []),
    ],
)
def test_a_completion_goes_to_the_next_level_then_by_granularity_and_ends_in_the_clean_estimate(
    level, last, granularity, visited
):
    assert completion(level, last, granularity) == visited


def test_single_steps_branch_off_one_ode_trajectory():
    tree = make(SingleSteps(), [0.7, 0.5, 0], group_size=2, seeds=1)
    assert edges(tree) == [
        (-1, 0, 0),
        (0, 1, 0.7), (1, 2, 0), (2, 3, 0),  # sample 0 at step 0
        (0, 1, 0.7), (4, 2, 0), (5, 3, 0),
        (0, 1, 0),  # the trunk
        (7, 2, 0.5), (8, 3, 0), (7, 2, 0.5), (10, 3, 0),
    ]  # fmt: skip
    assert tree.action_GA.tolist() == [[1, 8], [4, 10]]
    assert credits(tree) == [(3, 0, 0, 1), (6, 1, 0, 1), (9, 0, 1, 1), (11, 1, 1, 1)]
    assert (tree.rollout_calls(), tree.training_calls(), tree.pictures()) == (1 + 4 + 1 + 2, 2, 4)


def test_granularities_share_the_first_call_of_a_completion():
    tree = make(SingleSteps((1, 2, 3)), [0.7, 0, 0, 0, 0, 0], group_size=1, seeds=1)
    node = tree.action_GA[0, 0]
    ends = {tag: level_path(tree, end) for end, _, _, tag in credits(tree)}
    assert ends == {1: [0, 1, 2, 3, 4, 5, 6], 2: [0, 1, 2, 4, 6], 3: [0, 1, 2, 6]}
    # At levels 0, 1 and 2 once; then 3, 4, 5 for λ = 1 and 4 for λ = 2; λ = 3 ends at the call of level 2.
    assert tree.rollout_calls() == 3 + 3 + 1
    assert tree.parent_V[node] == 0 and tree.pictures() == 3


def level_path(tree: Tree, node: int) -> list[int]:
    return [int(tree.level_V[n]) for n in node_path(tree, node)]


def node_path(tree: Tree, node: int) -> list[int]:
    """The nodes from the root to `node`."""
    path = []
    while node >= 0:
        path.append(int(node))
        node = int(tree.parent_V[node])
    return path[::-1]


def test_the_published_granular_tree_has_its_pictures_and_calls():
    # G²RPO: T = 16, the first half, G = 12.
    levels = [0.7] * 8 + [0.0] * 8
    for granularity in ((1,), (1, 2), (1, 2, 3)):
        tree = make(SingleSteps(granularity), levels, group_size=12, seeds=1)
        assert tree.pictures() == 12 * 8 * len(granularity)
        assert tree.training_calls() == 8
    # The trunk to level 7, and from every branch at k + 1 the 15 - k calls of λ = 1.
    tree = make(SingleSteps(), levels, group_size=12, seeds=1)
    assert tree.rollout_calls() == 8 + 12 * sum(16 - (k + 1) for k in range(8))


def test_tempflow_seeds_have_trunks_of_their_own():
    tree = make(SingleSteps(), [0.7, 0.7, 0], group_size=24, seeds=4)
    assert tree.columns["seed"].tolist() == [s for s in range(4) for _ in range(6)]
    assert tree.training_calls() == 4 * 2
    root = torch.tensor([node_path(tree, n)[0] for n in tree.action_GA[:, 1].tolist()])
    assert root.tolist() == tree.columns["seed"].tolist()


def test_clean_images_finish_every_state_of_a_trajectory():
    tree = make(CleanImages(), [0.7, 0.7, 0], group_size=1, seeds=1)
    assert edges(tree) == [
        (-1, 0, 0), (0, 1, 0.7), (1, 2, 0.7),  # the trajectory
        (0, 1, 0), (3, 2, 0), (4, 3, 0),  # what the row starts from
        (1, 2, 0), (6, 3, 0), (2, 3, 0),
    ]  # fmt: skip
    assert credits(tree) == [(5, 0, BASELINE, 0), (7, 0, 0, 0), (8, 0, 1, 0)]
    assert tree.credits_actions


@pytest.mark.parametrize("steps", [4, 10])
def test_clean_images_cost_what_the_paper_says(steps):
    levels = [0.7] * (steps - 1) + [0.0]
    tree = make(CleanImages(), levels, group_size=3, seeds=3)
    assert tree.rollout_calls() == 3 * (steps + steps * (steps - 1) // 2)
    assert tree.training_calls() == 3 * (steps - 1) and tree.pictures() == 3 * steps
    shared = make(CleanImages(), levels, group_size=3, seeds=1)
    assert shared.pictures() == 3 * (steps - 1) + 1  # one baseline
    assert {c[0] for c in credits(shared) if c[2] == BASELINE} == {shared.node_C[0].item()}


def test_clean_images_in_one_call_are_clean_estimates_and_cost_nothing_more():
    tree = make(CleanImages(1), [0.7, 0.7, 0.7, 0], group_size=2, seeds=2)
    assert tree.rollout_calls() == 2 * 4
    paths = [level_path(tree, c[0]) for c in credits(tree)[:4]]
    assert paths == [[0, 4], [0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]


def test_clean_images_in_two_calls_halve_the_way():
    tree = make(CleanImages(2), [0.7, 0.7, 0.7, 0, 0, 0], group_size=1, seeds=1)
    assert [level_path(tree, c[0]) for c in credits(tree)] == [
        [0, 3, 6], [0, 1, 3, 6], [0, 1, 2, 4, 6], [0, 1, 2, 3, 5, 6],  # half of an odd number is rounded to even
    ]  # fmt: skip
    assert tree.rollout_calls() == 4 + 4


def test_branch_grpo_has_16_leaves_and_louder_splits():
    levels = [0.3] * 19 + [0.0]
    tree = make(Splits(2, (0, 3, 6, 9), 4.0), levels, group_size=16, seeds=1)
    assert tree.pictures() == 16 and tree.action_GA.shape == (16, 19)
    width = [int((tree.depth_V == d).sum()) for d in range(21)]
    assert width == [1] + [2] * 3 + [4] * 3 + [8] * 3 + [16] * 11
    loud = {int(d) - 1 for d in tree.depth_V[(tree.noise_V - 1.2).abs() < 1e-6].unique()}
    assert loud == {0, 3, 6, 9}
    assert tree.noise_V[1:].unique().tolist() == pytest.approx([0, 0.3, 1.2])
    assert tree.rollout_calls() == sum(width[:20]) and tree.training_calls() == sum(width[:19])
    # Each edge is trained once, by the first leaf below it.
    assert tree.train_GA.sum(0).tolist() == width[1:20]
    assert torch.nonzero(tree.train_GA[:, 0]).flatten().tolist() == [0, 8]
    assert torch.equal(tree.columns["edge"], tree.action_GA)


@pytest.mark.parametrize("start", [0, 2])
def test_tree_grpo_has_27_leaves_from_13_branching_latents(start):
    levels = [0.0] * start + [0.7] * 3 + [0.0] * (7 - start)
    tree = make(Splits(3), levels, group_size=27, seeds=1)
    assert tree.pictures() == 27
    assert tree.training_calls() == tree.parent_V[tree.noise_V > 0].unique().numel() == 13
    assert tree.train_GA.sum(0).tolist() == [3, 9, 27]
    assert tree.rollout_calls() == start + 13 + 27 * (7 - start)


# ── any size ────────────────────────────────────────────────────────────────────────────────────────────────────────

Path = tuple[tuple[int, object], ...]
"""What a latent is made of: its root, then (level, where the step's noise comes from) of every edge."""


@dataclass(frozen=True)
class Slow:
    """Every path written out for itself."""

    actions: dict[tuple[int, int], Path]
    credits: dict[tuple[int, int, int], Path]

    def latents_through_the_network(self) -> int:
        return len({path[:n] for path in self.credits.values() for n in range(1, len(path))})


def slow(kind: Branching, levels: list[float], group_size: int, seeds: int) -> Slow:
    trained = [k for k, noise in enumerate(levels[:-1]) if noise > 0]
    actions: dict[tuple[int, int], Path] = {}
    credits: dict[tuple[int, int, int], Path] = {}
    for sample in range(group_size):
        root = ((0, sample // (group_size // seeds)),)
        way = trajectory(kind, levels, sample, group_size, seeds)
        for action, k in enumerate(trained):
            before = root + way[:k]
            if isinstance(kind, SingleSteps):
                before = root + ode(range(1, k + 1))
                after = before + ((k + 1, (levels[k], sample, k)),)
                for granularity in kind.granularity:
                    grid = [k + 1, *range(k + 2, len(levels) + 1, granularity)]
                    # Calls at all of the grid but its end; the last one is carried on to σ = 0.
                    credits[sample, action, granularity] = after + ode(grid[1:-1]) + ode([len(levels)])
            else:
                after = before + way[k : k + 1]
            if isinstance(kind, CleanImages):
                if action == 0:
                    credits[sample, BASELINE, 0] = before + ode(levels_to_go(kind, k, len(levels)))
                credits[sample, action, 0] = after + ode(levels_to_go(kind, k + 1, len(levels)))
            actions[sample, action] = after
        if isinstance(kind, (Chains, Splits)):
            credits[sample, WHOLE_ROW, 0] = root + way
    return Slow(actions, credits)


def ode(levels) -> Path:
    return tuple((level, "ode") for level in levels)


def trajectory(kind: Branching, levels: list[float], sample: int, group_size: int, seeds: int) -> Path:
    """The edges of a sample that goes through all levels."""
    below = group_size // seeds
    way: Path = ()
    for k, noise in enumerate(levels):
        who: object = sample
        if isinstance(kind, Splits):
            splits = kind.at if kind.at is not None else [i for i, v in enumerate(levels[:-1]) if v > 0]
            noise *= kind.noise_scale if k in splits else 1
            below //= kind.factor if k in splits else 1
            who = sample // below  # all leaves of a branch
        way += ((k + 1, (noise, who, k) if noise else "ode"),)
    return way


def levels_to_go(kind: CleanImages, level: int, last: int) -> list[int]:
    left = last - level
    calls = left if kind.completion_steps is None else min(kind.completion_steps, left)
    return [level + round(left * i / calls) for i in range(1, calls + 1)]


@st.composite
def rollouts(draw) -> tuple[Branching, list[float], int, int]:
    levels = draw(st.lists(st.sampled_from([0.0, 0.5, 0.7]), min_size=2, max_size=7).filter(lambda v: any(v[:-1])))
    name = draw(st.sampled_from(["chains", "single", "clean", "splits"]))
    seeds, each = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    noisy = [k for k, noise in enumerate(levels[:-1]) if noise > 0]
    if name == "single":
        coarsest = min(4, len(levels) - 1)
        kind = SingleSteps(tuple(draw(st.lists(st.integers(1, coarsest), min_size=1, max_size=3, unique=True))))
    elif name == "clean":
        kind = CleanImages(draw(st.none() | st.integers(1, 4)))
    elif name == "splits":
        at = draw(st.none() | st.sets(st.sampled_from(noisy), max_size=3).map(lambda v: tuple(sorted(v))))
        kind = Splits(2, at, draw(st.sampled_from([1.0, 4.0])))
        each = 2 ** len(noisy if at is None else at)
    else:
        kind = Chains()
    return kind, levels, seeds * each, seeds


def tree_paths(tree: Tree) -> list[Path]:
    """As `Path`s, with the node for where the noise of a step comes from."""
    found: list[Path] = []
    for node, (parent, level, noise) in enumerate(edges(tree)):
        source = node if parent < 0 or noise else "ode"
        found.append((found[parent] if parent >= 0 else ()) + ((level, source),))
    return found


def noises(path: Path) -> Iterator[float]:
    for _, source in path[1:]:
        yield 0.0 if source == "ode" else source[0]


@settings(max_examples=250)
@given(rollouts())
def test_a_tree_is_its_paths_with_nothing_computed_twice(rollout):
    kind, levels, group_size, seeds = rollout
    if group_size > seeds:
        kind.check(steps=len(levels), noisy=sum(v > 0 for v in levels[:-1]), group_size=group_size, seeds=seeds)
    tree, wanted = make(kind, levels, group_size=group_size, seeds=seeds), slow(kind, levels, group_size, seeds)

    # Latents: parents first, no deterministic step twice, as many calls as there are different unfinished latents.
    number = torch.arange(len(tree.parent_V))
    assert (tree.parent_V < number).all() and (tree.parent_V[:seeds] == -1).all() and (tree.parent_V[seeds:] >= 0).all()
    paths = tree_paths(tree)
    assert len(set(paths)) == len(paths)
    assert tree.rollout_calls() == wanted.latents_through_the_network()
    child = tree.parent_V >= 0
    assert torch.equal(tree.depth_V[child], tree.depth_V[tree.parent_V[child]] + 1)

    # Credits and actions: node for node the same paths, with the same noise.
    made = {(s, a, t): n for n, s, a, t in credits(tree)}
    assert made.keys() == wanted.credits.keys() and len(made) == len(tree.node_C)
    trained = trained_steps(torch.tensor(levels), Shifted()(len(levels), image_tokens=64))
    assert tree.action_GA.shape == (group_size, len(trained))
    pairs = [(n, wanted.credits[key]) for key, n in made.items()]
    pairs += [(int(tree.action_GA[key]), path) for key, path in wanted.actions.items()]
    same: dict[int, Path] = {}
    for node, path in pairs:
        assert same.setdefault(node, path) == path
        assert [level for level, _ in paths[node]] == [level for level, _ in path]
        nodes = node_path(tree, node)
        assert tree.noise_V[nodes[1:]].tolist() == pytest.approx(list(noises(path)))
        assert nodes[0] == path[0][1]
        for i in range(len(path)):  # shared exactly where the paths are
            assert same.setdefault(nodes[i], path[: i + 1]) == path[: i + 1]
    assert len(set(same.values())) == len(same)

    # Training: noisy edges above σ = 0, each once, by the first sample that has it.
    assert tree.train_GA.sum() == tree.action_GA.unique().numel() == len(set(wanted.actions.values()))
    assert (tree.noise_V[tree.action_GA] > 0).all() and (tree.level_V[tree.action_GA] < len(levels)).all()
    owner: dict[int, tuple[int, int]] = {}
    for key in wanted.actions:
        owner.setdefault(int(tree.action_GA[key]), key)
    assert all(bool(tree.train_GA[key]) == (owner[int(tree.action_GA[key])] == key) for key in wanted.actions)
    assert tree.training_calls() == len({path[:-1] for path in wanted.actions.values()})
    assert tree.pictures() == len(set(wanted.credits.values()))
    assert drawing(tree, len(levels))  # has words for it

    # Without sharing every credit costs its whole path, with the same noise at the same levels.
    alone = make(Unshared(kind), levels, group_size=group_size, seeds=seeds)
    assert alone.pictures() == len(wanted.credits) and torch.equal(alone.train_GA, tree.train_GA)
    for a, b in zip(alone.node_C.tolist(), tree.node_C.tolist(), strict=True):
        ways = [(t, node_path(t, n)) for t, n in ((alone, a), (tree, b))]
        assert ways[0][1][0] == ways[1][1][0]
        for name in ("level_V", "noise_V", "depth_V"):
            assert torch.equal(*(getattr(t, name)[way] for t, way in ways))
        drawn = [[int(t.draw_V[n]) for n in way[1:] if t.noise_V[n] > 0] for t, way in ways]
        assert drawn[0] == drawn[1]
    inner = sum(len(path) - 2 for path in wanted.credits.values())
    assert alone.rollout_calls() == inner + len({path[0] for path in wanted.credits.values()})


# ── the engine's tree ───────────────────────────────────────────────────────────────────────────────────────────────


def engine(**settings) -> FlowEngine:
    return FlowEngine(**({"steps": 10, "schedule": Shifted()} | settings))


def tree_of(made: FlowEngine, group_size: int, *, step: int = 0) -> Tree:
    return made.grid_and_tree(step=step, seed=0, group_size=group_size)[1]


def test_depth_pruning_trains_the_edges_inside_a_moving_window():
    made = engine(
        noise=Window(size=6, within=(0, 6)), tree=Splits(2, (0, 3)), seeds=1,
        train_within=SlidingWindow(size=2, every=30, level=1.0),
    )  # fmt: skip
    whole = tree_of(engine(noise=made.noise, tree=made.tree, seeds=1), 4)
    for step, window in ((0, (0, 1)), (29, (0, 1)), (30, (1, 2)), (90, (3, 4)), (120, (4, 5))):
        tree = tree_of(made, 4, step=step)
        inside = torch.tensor([k in window for k in range(6)])
        assert torch.equal(tree.train_GA, whole.train_GA & inside)
        assert torch.equal(tree.noise_V, whole.noise_V)


def test_depth_pruning_counts_in_steps_before_the_tail_is_compressed():
    # 3 noisy steps and a tail cut to 1: the pruning window still slides over all 10 steps.
    made = engine(
        noise=Window(size=3, within=(0, 3)), solver=DpmSolverPP(keep_ratio=0.2), seeds=1,
        train_within=SlidingWindow(size=4, every=1),
    )  # fmt: skip
    assert tree_of(made, 2, step=0).train_GA.all()
    assert tree_of(made, 2, step=2).train_GA.tolist() == [[False, False, True]] * 2


def test_a_compressed_tail_has_fewer_completion_calls():
    sigma_S1, tree = engine(
        noise=Window(size=2, within=(0, 2)), solver=DpmSolverPP(keep_ratio=0.5), seeds=1, tree=SingleSteps((1, 2))
    ).grid_and_tree(step=0, seed=0, group_size=3)
    assert len(sigma_S1) == 2 + 4 + 1
    assert int(tree.level_V.max()) == 6 and (tree.level_V[tree.node_C] == 6).all()


def test_a_random_window_gives_every_step_its_own_tree():
    made = engine(noise=GeometricWindow(size=3), tree=Splits(3), seeds=1)
    starts = {
        int(tree_of(made, 27, step=step).level_V[tree_of(made, 27, step=step).action_GA[0, 0]]) for step in range(40)
    }
    assert len(starts) > 2
    assert {tree_of(made, 27, step=step).training_calls() for step in range(10)} == {13}


@pytest.mark.parametrize(
    "kind, wrong",
    [
        (SingleSteps, dict(granularity=())),
        (SingleSteps, dict(granularity=(0, 1))),
        (SingleSteps, dict(granularity=(2, 2))),
        (CleanImages, dict(completion_steps=0)),
        (Splits, dict(factor=1)),
        (Splits, dict(noise_scale=0.0)),
    ],
)
def test_settings_that_make_no_tree_are_refused(kind, wrong):
    with pytest.raises(ConfigError, match="wanted"):
        kind(**wrong)


def test_noise_is_required_where_a_tree_splits():
    assert tree_of(engine(noise=AllSteps(), tree=Splits(2, (0, 2)), seeds=1), 4).pictures() == 4
    with pytest.raises(ConfigError, match=r"splits at step 4, .*no noise"):
        tree_of(engine(noise=Window(size=3, within=(0, 3)), tree=Splits(2, (0, 4)), seeds=1), 4)
