"""Rollouts with shared prefixes: the same numbers as without sharing, on any batch and rank, for the planned calls."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from grpo_mm import train
from grpo_mm.config.arithmetic import lines
from grpo_mm.config.run_config import Scorer, read
from grpo_mm.errors import ConfigError
from grpo_mm.looking import metrics
from grpo_mm.objectives import ClippedRatio, Kl
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.kernels import cps, dance_sde, ddim
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.noise import AllSteps, Levels, SlidingWindow, Window
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig
from grpo_mm.pipelines.flow.schedule import Shifted
from grpo_mm.pipelines.flow.solver import DpmSolverPP
from grpo_mm.pipelines.flow.trees.branching import Chains, CleanImages, SingleSteps, Splits, Unshared
from grpo_mm.pipelines.flow.trees.tree import Tree
from grpo_mm.processes import clock
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream
from grpo_mm.rollout.collectors.sample_and_score import SampleAndScore
from grpo_mm.rollout.rows import plan_rows
from grpo_mm.training.learner import Learner
from grpo_mm.types import BASELINE, Credit, Outputs, Prompt, Rollout, Rows, Scores
from grpo_mm.weights.update import accumulate, make_view

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PROMPTS = tuple(Prompt(f"p/{i}", text) for i, text in enumerate(("a red circle", "the blue square", "a photo")))
GROUP = 4
EARLY = Window(size=2, within=(0, 2))
LATE = Window(size=2, within=(1, 3))
KINDS: dict[str, dict] = {
    "chains": dict(noise=AllSteps()),
    "chains of one latent": dict(noise=LATE, seeds=1, tree=Chains()),
    "chains, dpm": dict(noise=EARLY, seeds=2, solver=DpmSolverPP(keep_ratio=0.7), steps=7, kernel=dance_sde),
    "noisy last step": dict(noise=AllSteps(level=0.3, last=True), kernel=dance_sde),
    "single steps": dict(noise=EARLY, seeds=1, tree=SingleSteps((1, 2, 3))),
    "single steps, dpm": dict(noise=LATE, seeds=2, tree=SingleSteps((1, 2)), solver=DpmSolverPP(), steps=12),
    "clean images": dict(noise=LATE, seeds=1, tree=CleanImages(), kernel=cps),
    "clean images, two calls": dict(noise=Levels((0.3, 0, 0.5, 0, 0)), tree=CleanImages(2), kernel=dance_sde),
    "clean images, dpm": dict(noise=EARLY, tree=CleanImages(), solver=DpmSolverPP()),
    "splits": dict(noise=Window(size=3, within=(0, 3), level=0.2), seeds=1, tree=Splits(2, (0, 2), 4.0), kernel=ddim),
    "splits, dpm": dict(noise=LATE, seeds=1, tree=Splits(2), solver=DpmSolverPP()),
    "unshared": dict(noise=EARLY, seeds=1, tree=Unshared(SingleSteps((1, 2)))),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def load(tiny_sd3) -> Callable[..., FlowPolicy]:
    def load(**settings) -> FlowPolicy:
        torch.manual_seed(0)
        defaults = dict(model=Sd3(tiny_sd3), lora=Lora(rank=3, alpha=5), height=16, width=16, text_length=8)
        policy = FlowPolicyConfig(**(defaults | settings)).load(CPU)
        policy.snapshots.take("ref")
        with torch.no_grad():
            for p in policy.trainable.values():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p))
        return policy

    return load


@pytest.fixture(scope="module")
def policy(load) -> FlowPolicy:
    """Tests leave it as it is."""
    return load()


@pytest.fixture
def counted(monkeypatch) -> clock.Clock:
    fresh = clock.Clock()
    monkeypatch.setattr(clock, "_current", fresh)
    return fresh


@pytest.fixture
def latents_for_pictures(policy, monkeypatch):
    """Pictures stay latents, which can be compared closely."""
    monkeypatch.setattr(policy, "decode", lambda latents, *, size: latents)


def engine_of(kind: str, **settings) -> FlowEngine:
    return FlowEngine(**({"steps": 5, "schedule": Shifted()} | KINDS[kind] | settings))


def rows_of(prompts: int = 2, *, rank: int = 0, world: int = 1) -> Rows:
    return plan_rows(PROMPTS[:prompts], group_size=GROUP, parts=1, rank=rank, world=world)[0]


def roll(policy: FlowPolicy, engine: FlowEngine, rows: Rows | None = None, *needs: str) -> tuple[Rollout, Outputs]:
    return engine.sample(policy, rows or rows_of(), step=3, seed=7, needs=frozenset(needs))


def tree_of(policy: FlowPolicy, engine: FlowEngine) -> tuple[Tensor, Tree]:
    tokens = policy.family.image_tokens(policy.pipe, *policy.size(evaluation=False))
    return engine.grid_and_tree(step=3, seed=7, group_size=GROUP, image_tokens=tokens)


def close(a: Tensor, b: Tensor, *, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ── against a slow loop ─────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def slow_latents(policy: FlowPolicy, engine: FlowEngine, prompt: Prompt, node: int) -> list[Tensor]:
    """The latents on the way to one node, from its initial latent, alone."""
    sigma_S1, tree = tree_of(policy, engine)
    condition, size = policy.encode([prompt]), policy.size(evaluation=False)
    way = [node]
    while tree.parent_V[way[0]] >= 0:
        way.insert(0, int(tree.parent_V[way[0]]))
    shape = policy.family.latent_shape(policy.pipe, *size)
    found = [torch.randn(1, *shape, generator=stream(7, "init_noise", 3, prompt.id, way[0]))]
    history: list[Tensor] = []
    for here, after in zip(way[:-1], way[1:]):
        x, sigma, sigma_next = found[-1], sigma_S1[tree.level_V[here]], sigma_S1[tree.level_V[after]]
        velocity = policy.velocity(x, sigma[None], condition, size=size, guidance=policy.config.guidance)
        noise = tree.noise_V[after]
        if noise == 0:
            found.append(engine.solver.step(x, velocity, sigma, sigma_next, history))
        else:
            mean, std = engine.kernel(x, velocity, sigma, sigma_next, noise)
            draw = stream(7, "sde", 3, prompt.id, int(tree.draw_V[after]))
            found.append(mean + std * torch.randn(1, *shape, generator=draw))
        history = [sigma, x - sigma * velocity]
    return found


@every_kind
def test_every_picture_and_transition_is_that_of_its_own_path(policy, kind, latents_for_pictures):
    engine = engine_of(kind)
    _, tree = tree_of(policy, engine)
    rollout, outputs = roll(policy, engine)
    record, rows = rollout.record, rows_of()
    for row, (p, sample) in enumerate(zip(rows.prompt_N.tolist(), rows.sample_N.tolist(), strict=True)):
        for action in torch.nonzero(rollout.mask_NA[row]).flatten().tolist():
            way = slow_latents(policy, engine, PROMPTS[p], int(tree.action_GA[sample, action]))
            close(record.x_NA[row, action], way[-2][0])
            close(record.next_NA[row, action], way[-1][0])
    assert len(outputs) == 2 * len(tree.node_C)
    columns = (tree.sample_C, tree.action_C, tree.tag_C, tree.node_C)
    credit = {(s, a, t): node for s, a, t, node in zip(*(c.tolist() for c in columns), strict=True)}
    action_M = outputs.action_M if outputs.action_M is not None else torch.full((len(outputs),), -1)
    tag_M = outputs.tag_M if outputs.tag_M is not None else torch.zeros(len(outputs), dtype=torch.int64)
    ends: dict[tuple[int, int], Tensor] = {}
    for m, row in enumerate(outputs.row_M.tolist()):
        p, node = int(rows.prompt_N[row]), credit[int(rows.sample_N[row]), int(action_M[m]), int(tag_M[m])]
        if (p, node) not in ends:
            ends[p, node] = slow_latents(policy, engine, PROMPTS[p], node)[-1][0]
        close(outputs.items[outputs.item_index()[m]], ends[p, node])
    assert len(ends) == len(outputs.items)
    assert logprob_gap(policy, rollout) <= 1e-5


def logprob_gap(policy: FlowPolicy, rollout: Rollout) -> float:
    plan = policy.plan(rollout, rollout.mask_NA)
    pairs = policy.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=False)
    return max(float((v["logprobs"] - rollout.behaviour_NA.flatten()[i]).abs().max()) for i, v in pairs)


def test_a_picture_is_the_decoded_end_of_its_path(policy):
    engine = engine_of("single steps")
    _, tree = tree_of(policy, engine)
    _, outputs = roll(policy, engine, rows_of(1))
    by_row = torch.argsort(tree.sample_C, stable=True)
    ends = torch.cat([slow_latents(policy, engine, PROMPTS[0], int(n))[-1] for n in tree.node_C[by_row]])
    wanted = policy.decode(ends, size=(16, 16))
    assert torch.equal(outputs.row_M, tree.sample_C[by_row])
    assert outputs.items.dtype == torch.uint8
    assert (outputs.items[outputs.item_index()].int() - wanted.int()).abs().max() <= 1


# ── cost ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind, guidance", [*((kind, 1.0) for kind in KINDS), ("single steps", 3.0), ("splits", 3.0)])
def test_a_step_makes_the_planned_network_calls(load, counted, kind, guidance):
    policy = load(guidance=guidance)
    engine = engine_of(kind, rollout_batch=3)
    needs = frozenset({"logprobs", "mean_shift_ref"})
    plan = engine.network_calls(policy.config, prompts=2, group_size=GROUP, needs=needs, step=3, seed=7)
    rollout, _ = roll(policy, engine)
    assert counted.counts == {"rollout_calls": plan["rollout"]}
    rollout = policy.with_values_of("ref", rollout, rollout.mask_NA)
    gradient(policy, rollout)
    assert counted.counts == {f"{name}_calls": number for name, number in plan.items()}


OBJECTIVE = (ClippedRatio(clip_low=0.2, clip_high=0.2, step_weight="relative_std"), Kl("gaussian", 0.3))


def gradient(policy: FlowPolicy, rollout: Rollout) -> Tensor:
    """Of the objective with made-up advantages, flat."""
    advantage = torch.randn(rollout.mask_NA.shape, generator=torch.Generator().manual_seed(2))
    earned = Credit(advantage, torch.ones_like(rollout.mask_NA))
    processes = Processes(device="cpu")
    view = make_view(rollout, earned, rollout.mask_NA, rollout.behaviour_NA, processes)
    for p in policy.trainable.values():
        p.grad = None
    accumulate(policy, rollout, OBJECTIVE, view, processes)
    grads = [p.grad for p in policy.trainable.values() if p.grad is not None]
    return torch.cat([g.flatten() for g in grads])


def own_copies(rollout: Rollout) -> Rollout:
    """Every action with latents and velocities of its own."""
    record = rollout.record
    before, after = record.from_NA.flatten(), record.to_NA.flatten()
    node = torch.cat([before, after])
    number = torch.arange(len(before)).view(record.from_NA.shape)
    names = [n for n in ("latent_V", "level_V", "condition_V", "velocity_ref_V") if getattr(record, n) is not None]
    record = replace(record, from_NA=number, to_NA=number + len(before), **{n: getattr(record, n)[node] for n in names})
    return replace(rollout, record=record)


@pytest.mark.parametrize("kind", ["chains of one latent", "single steps", "clean images", "splits"])
def test_shared_latents_give_the_gradient_of_separate_ones(load, counted, kind):
    policy = load(dtype="float64", micro_batch=3)
    for norm in policy.network.modules():
        if type(norm).__name__ == "RMSNorm":  # diffusers computes it in float32, which would be all that differs
            norm.forward = partial(rms_norm, normalized_shape=norm.dim, weight=norm.weight, eps=norm.eps)
    rollout, _ = roll(policy, engine_of(kind))
    other = engine_of(kind, tree=Unshared(KINDS[kind]["tree"]))
    rollout = policy.with_values_of("ref", rollout, rollout.mask_NA)
    counted.counts.clear()
    shared = gradient(policy, rollout)
    calls = counted.counts.pop("train_calls")
    separate = gradient(policy, own_copies(rollout))
    assert counted.counts.pop("train_calls") == int(rollout.mask_NA.sum()) > calls
    largest = float(shared.abs().max())
    assert largest > 1e-4
    close(separate, shared, atol=1e-9 * largest)
    # And a rollout that shared nothing either, from the same noise.
    alone, _ = roll(policy, other)
    alone = policy.with_values_of("ref", alone, alone.mask_NA)
    close(gradient(policy, alone), shared, atol=1e-9 * largest)


@pytest.mark.parametrize("kind", ["chains", "single steps", "splits"])
def test_depth_pruning_leaves_the_pictures_and_the_rest_of_the_gradient_alone(policy, kind, latents_for_pictures):
    whole, outputs = roll(policy, engine_of(kind))
    within = SlidingWindow(size=1, every=2)  # at step 3: denoising step 1
    pruned, same = roll(policy, engine_of(kind, train_within=within))
    assert torch.equal(same.items, outputs.items)
    inside = whole.mask_NA & (torch.arange(whole.num_actions) == 1)
    assert torch.equal(pruned.mask_NA, inside)
    close(pruned.record.x_NA[inside], whole.record.x_NA[inside])
    assert len(pruned.record.latent_V) < len(whole.record.latent_V)
    pruned = policy.with_values_of("ref", pruned, inside)
    whole = policy.with_values_of("ref", replace(whole, mask_NA=inside), inside)
    grads = [gradient(policy, rollout) for rollout in (pruned, whole)]
    assert grads[0].isfinite().all() and grads[0].abs().max() > 1e-6
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-7)


# ── batches and ranks ───────────────────────────────────────────────────────────────────────────────────────────────


def assert_same_rollout(a: tuple[Rollout, Outputs], b: tuple[Rollout, Outputs]) -> None:
    (rollout, outputs), (other, other_outputs) = a, b
    for name in ("prompt_N", "sample_N", "mask_NA"):
        assert torch.equal(getattr(rollout, name), getattr(other, name)), name
    mask = rollout.mask_NA
    close(rollout.record.x_NA[mask], other.record.x_NA[mask])
    close(rollout.record.next_NA[mask], other.record.next_NA[mask])
    close(rollout.behaviour_NA[mask], other.behaviour_NA[mask])
    assert rollout.record.condition.keys() == other.record.condition.keys()
    for name in rollout.record.condition:
        seen = [r.record.condition[name][r.record.condition_V[r.record.from_NA[mask]]] for r in (rollout, other)]
        assert torch.equal(*seen), name
    for mine, its in zip(rollout.record.sigmas(), other.record.sigmas(), strict=True):
        assert torch.equal(mine[mask], its[mask])
    assert rollout.columns.keys() == other.columns.keys()
    for name in rollout.columns:
        close(rollout.columns[name], other.columns[name])
    assert_same_outputs(outputs, other_outputs)


def assert_same_outputs(a: Outputs, b: Outputs) -> None:
    for name in ("row_M", "action_M", "tag_M"):
        mine, its = getattr(a, name), getattr(b, name)
        assert (mine is None) == (its is None) and (mine is None or torch.equal(mine, its)), name
    close(a.items[a.item_index()].float(), b.items[b.item_index()].float())


def joined(parts: list[tuple[Rollout, Outputs]]) -> tuple[Rollout, Outputs]:
    rollouts, outputs = zip(*parts, strict=True)
    return Rollout.cat(rollouts), Outputs.cat(outputs, rows=[r.num_rows for r in rollouts])


@every_kind
@pytest.mark.parametrize(
    "prompts, world",
    [(2, 2), pytest.param(1, 2, marks=pytest.mark.slow), (3, 2)],  # the last has halves too
    ids=["whole groups", "half groups", "one cut"],
)
def test_ranks_and_batches_make_the_same_rollout(policy, kind, prompts, world, latents_for_pictures):
    whole = roll(policy, engine_of(kind), rows_of(prompts), "mean_shift_old")
    parts = [
        roll(policy, engine_of(kind, rollout_batch=3), rows_of(prompts, rank=r, world=world), "mean_shift_old")
        for r in range(world)
    ]
    together = joined(parts)
    assert_same_rollout(whole, together)
    mask = whole[0].mask_NA
    at = [r.record.velocity_old_V[r.record.from_NA[mask]] for r in (whole[0], together[0])]
    close(at[0], at[1])
    assert at[0].abs().min() > 0
    # A rank keeps and decodes what its own rows need, and no more.
    own = [len(rollout.record.latent_V) for rollout, _ in parts]
    assert max(own) < len(whole[0].record.latent_V)
    for _, outputs in parts:
        assert outputs.item_index().unique().numel() == len(outputs.items)


@pytest.mark.parametrize("kind", ["single steps", "clean images", "splits"])
def test_rows_can_be_taken_apart_and_joined_in_any_order(policy, kind):
    rollout, _ = roll(policy, engine_of(kind), None, "mean_shift_old")
    rollout = policy.with_values_of("ref", rollout, rollout.mask_NA)
    order = torch.tensor([5, 0, 7, 2, 1, 6, 4, 3])
    back = torch.argsort(order)
    again = Rollout.cat([rollout.take(order[:3]), rollout.take(order[3:4]), rollout.take(order[4:])]).take(back)
    mask = rollout.mask_NA
    assert torch.equal(again.mask_NA, mask) and torch.equal(again.behaviour_NA, rollout.behaviour_NA)
    for name in ("x_NA", "next_NA", "step_NA", "noise_level_NA"):
        assert torch.equal(getattr(again.record, name)[mask], getattr(rollout.record, name)[mask])
    for name in ("velocity_old_V", "velocity_ref_V"):
        a, b = (getattr(r.record, name)[r.record.from_NA[mask]] for r in (again, rollout))
        assert torch.equal(a, b)
    close(gradient(policy, again), gradient(policy, rollout), atol=1e-6)
    assert len(again.record.latent_V) <= len(rollout.record.latent_V) + 2 * mask.numel()
    few = rollout.take(torch.tensor([1]))
    assert len(few.record.latent_V) <= 2 * rollout.num_actions + 1 < len(rollout.record.latent_V)


# ── what is scored ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_one_latent_share_their_baseline_picture(policy):
    engine = engine_of("clean images")
    rollout, outputs = roll(policy, engine)
    assert len(outputs) == 2 * GROUP * 3  # a baseline and two actions of each row
    assert len(outputs.items) == 2 * (1 + GROUP * 2) == 2 * engine.pictures(GROUP)
    base = outputs.action_M == BASELINE
    assert outputs.item_M[base].unique().numel() == 2
    assert outputs.item_M[~base].unique().numel() == 2 * GROUP * 2
    first = outputs.first_output()
    assert torch.equal(outputs.item_index()[first], torch.arange(len(outputs.items)))
    assert all(first[i] == (outputs.item_M == i).nonzero().min() for i in range(len(first)))
    shown = outputs.pictures()
    assert outputs.row_M[shown].tolist() == list(range(2 * GROUP))
    assert (outputs.action_M[shown] == 1).all()


def test_the_picture_of_a_row_is_that_of_its_last_step_at_the_finest_granularity(policy):
    _, outputs = roll(policy, engine_of("single steps"))
    shown = outputs.pictures()
    assert outputs.row_M[shown].tolist() == list(range(2 * GROUP))
    assert outputs.action_M[shown].tolist() == [1] * 8 and outputs.tag_M[shown].tolist() == [1] * 8


def mean_level(images, prompts, metadata):
    import numpy as np

    return [float(np.asarray(image).mean()) for image in images]


QUICK = ("prompts_per_step=3", "group_size=4", "updates.count=1", "threads=1", "eval_prompts={}", "samples_every=0")


def learner_of(name: str, tmp_path: Path, reward: Callable, *overrides: str) -> Learner:
    config = read(ROOT / f"configs/quickstart/{name}.yaml", [*QUICK, "watch={}", *overrides])
    config = replace(config, rewards={"level": Scorer(reward)})
    config.check()
    return Learner(config, Processes(device="cpu"), samples=tmp_path)


@pytest.mark.parametrize("name", ["dense", "g2rpo"])
def test_what_outputs_share_is_scored_once_and_credited_to_each(tmp_path, counted, name):
    seen = []

    def reward(images, prompts, metadata):
        seen.append(len(images))
        return mean_level(images, prompts, metadata)

    learner = learner_of(
        name, tmp_path, reward, "engine.seeds=1", "engine.noise={kind: window, size: 2, within: [0, 2]}"
    )
    (batch,), _ = learner.rollout(0)
    outputs, scores = batch.outputs, batch.scores["level"]["score"]
    assert sum(seen[1:]) == len(outputs.items) == learner.config.planned_reward_calls() == counted.counts["rewards"]
    assert scores.shape == (len(outputs),)
    wanted = outputs.items.float().mean((1, 2, 3))[outputs.item_index()]
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-3)


# ── pieces ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name, more", [("dense", "engine.seeds=1"), ("branch", "group_size=9")])
def test_pieces_make_the_same_batch(tmp_path, name, more):
    learner = learner_of(name, tmp_path, mean_level, more)
    found = []
    for pieces in (1, 2, 3, 5):
        learner.config = replace(learner.config, collector=SampleAndScore(pieces))
        (batch,), part_N = learner.rollout(0)
        assert len(part_N) == batch.rollout.num_rows
        found.append(batch)
    for other in found[1:]:
        a, b = found[0], other
        pictures = [o.items[o.item_index()].int() for o in (a.outputs, b.outputs)]
        assert (pictures[0] - pictures[1]).abs().max() <= 1
        alike = [(batch.rollout, replace(batch.outputs, items=batch.outputs.items * 0)) for batch in (a, b)]
        assert_same_rollout(*alike)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=0.05)
        credits = [learner._credit(batch, learner.table(batch), 0)[1] for batch in (a, b)]
        assert torch.equal(credits[0].keep_NA, credits[1].keep_NA)


def fake_piece(rows: Rows) -> tuple[Rollout, Outputs]:
    n = len(rows)
    rollout = Rollout(
        rows.prompts, rows.prompt_N, rows.sample_N, torch.zeros(n, 1), torch.ones(n, 1, dtype=torch.bool), FakeRecord()
    )
    return rollout, Outputs(items=[f"{p}/{s}" for p, s in zip(rows.prompt_N, rows.sample_N)], row_M=torch.arange(n))


class FakeRecord:
    def cat(self, others) -> FakeRecord:
        return self


@pytest.mark.parametrize("pieces", [2, 3])
def test_a_piece_is_scored_while_the_next_one_is_sampled(pieces):
    sampling, scoring = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]
    log: list[str] = []
    parts = [[0, 1], [2]] if pieces == 2 else [[0], [1], [2]]

    def sample(rows: Rows):
        number = parts.index(rows.prompt_N.unique().tolist())
        sampling[number].set()
        # The piece before is being scored at this moment: its scoring waits for this sampling to begin, and the other way.
        assert number == 0 or scoring[number - 1].wait(20)
        return fake_piece(rows)

    def score(rollout: Rollout, outputs: Outputs) -> dict[str, Scores]:
        number = parts.index(rollout.prompt_N.unique().tolist())
        scoring[number].set()
        assert number == pieces - 1 or sampling[number + 1].wait(20)
        log.append(f"scored {number}")
        assert threading.current_thread() is not threading.main_thread()
        return {"r": {"score": rollout.prompt_N.float(), **({"rare": rollout.sample_N.float()} if number == 1 else {})}}

    (batch,) = SampleAndScore(pieces)(sample, score, rows_of(3))
    assert log == [f"scored {i}" for i in range(pieces)]
    assert batch.scores["r"]["score"].tolist() == [float(p) for p in rows_of(3).prompt_N]
    rare = batch.scores["r"]["rare"]
    assert rare.isnan().tolist() == [p not in parts[1] for p in rows_of(3).prompt_N.tolist()]
    assert batch.outputs.items == [f"{p}/{s}" for p in range(3) for s in range(GROUP)]
    assert batch.outputs.row_M.tolist() == batch.outputs.item_index().tolist() == list(range(12))


def test_one_piece_is_scored_in_the_main_thread():
    threads = []
    score = lambda rollout, outputs: threads.append(threading.current_thread()) or {"r": {"score": torch.zeros(12)}}  # noqa: E731
    SampleAndScore()(fake_piece, score, rows_of(3))
    assert threads == [threading.main_thread()]


def test_an_error_while_scoring_a_piece_gets_out():
    def score(rollout, outputs):
        raise RuntimeError("the judge is gone")

    with pytest.raises(RuntimeError, match="the judge is gone"):
        SampleAndScore(3)(fake_piece, score, rows_of(3))


# ── contradictions ──────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED: dict[str, tuple[str, list[str], str]] = {
    "leaves are not the group": ("branch", ["group_size=12"], r"9 leaves, but group_size = 12.*use group_size=9"),
    "leaves of a window": ("branch", ["engine.tree.at=null"], r"split 4 times by 3 have 81 leaves.*group_size=81"),
    "a split at the last step": ("branch", ["engine.tree.at=[0, 7]"], "wanted steps from 0 to 6"),
    "a split without noise": ("branch", ["engine.tree.at=[0, 5]"], "splits at step 5, but that step has no noise"),
    "a split that a window leaves": (
        "branch", ["engine.noise={kind: sliding_window, size: 3, every: 5, level: 0.3}"], "splits at step 0, but .*at=null",
    ),
    "seeds do not divide": ("mix", ["engine.seeds=5"], "engine.seeds = 5 .* group_size = 12 samples; wanted a divisor"),
    "no seeds": ("mix", ["engine.seeds=0"], "engine.seeds = 0 .*wanted a divisor"),
    "nothing to compare a branch with": ("g2rpo", ["engine.seeds=12"], "Use engine.seeds=1, or a divisor"),
    "branches with latents of their own": ("g2rpo", ["engine.seeds=null"], "engine.seeds = 12.*Use engine.seeds=1"),
    "cps above 1": ("flow", ["engine.kernel=cps", "engine.noise.level=1.2"], r"noise.level = 1.2; .* η in \(0, 1\]"),
    "ddim above 1 by a split": (
        "branch", ["engine.kernel=ddim", "engine.tree.noise_scale=4.0"], r"noise.level = 1.2; .* η in \(0, 1\]",
    ),
    "gains are missing": ("dense", ["advantage=[{kind: group_norm}, {kind: weighted_sum}]"], "add the stage {kind: gains}"),
    "gains of nothing": (
        "flow", ["advantage=[{kind: weighted_sum}, {kind: gains}, {kind: group_norm}]"], "engine.tree={kind: clean_images}",
    ),
    "backup without a tree": (
        "flow", ["advantage=[{kind: weighted_sum}, {kind: tree_backup}, {kind: group_norm}]"], "engine.tree={kind: splits",
    ),
    "one ratio for single credits": (
        "dense", ["objective=[{kind: clipped_ratio, ratio: row}]"], "Use ratio: action",
    ),
    "a share of scored steps": ("dense", ["engine.train_fraction=0.5"], "train_fraction = 0.5 .*Choose the steps with engine.noise instead"),
    "a share of a tree's edges": ("branch", ["engine.train_fraction=0.5"], "train_fraction = 0.5 .*engine.noise instead"),
    "no share": ("flow", ["engine.train_fraction=0"], r"train_fraction = 0.0; wanted a share in \(0, 1\]"),
    "calibrated without clean images": (
        "flow", ["engine.noise={kind: calibrated}", "engine.kernel=dance_sde"], "use engine.tree={kind: clean_images}",
    ),
    "calibrated for another kernel": ("dense", ["engine.noise={kind: calibrated}"], "Use engine.kernel=dance_sde"),
    "pruned to nothing": (
        "branch", ["engine.train_within={kind: window, size: 2, within: [5, 7]}"], "train_within .* no noisy step",
    ),
    "pruned to nothing later": (
        "branch", ["engine.train_within={kind: sliding_window, size: 2, every: 9}", "steps=60"], "train_within .* no noisy step",
    ),
    "pruning overruns": ("branch", ["engine.train_within={kind: window, size: 2, within: [6, 8]}"], "the noise window reaches"),
    "over the budget": ("g2rpo", ["max_reward_calls=10"], "more than max_reward_calls = 10.*or raise the budget"),
    "flow matching with ratios": (
        "flow", ["objective=[{kind: nft}]"], "the objective needs beta, nft_minus, nft_plus.*Choose another objective",
    ),
    "ratios of the forward process": (
        "nft", ["objective=[{kind: clipped_ratio}]"], "the objective needs logprobs.*Choose another objective",
    ),
    "only win rates to evaluate with": ("pref", ["watch={}"], "Put an absolute reward under `watch`"),
    "win rates without a judge": ("flow", ["rewards={w: {use: win_rate}}"], "needs a judge: add judge"),
    "too many updates by action": ("mix", ["updates={by: action, count: 3}"], "Use at most 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_is_found_before_a_model_is_loaded(name, monkeypatch):
    config, overrides, wanted = REFUSED[name]
    monkeypatch.setattr(FlowPolicyConfig, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=wanted) as caught:
        train(ROOT / f"configs/quickstart/{config}.yaml", overrides)
    assert "\n" not in str(caught.value)


# ── what `show` says ────────────────────────────────────────────────────────────────────────────────────────────────

SHOWN = sorted(p.stem for p in (ROOT / "configs/quickstart").glob("*.yaml"))


def quick_or_slow(name):
    """The spatial quickstarts differ in their stages and rewards, which make no network calls; TempFlow grows G²RPO's tree."""
    return pytest.param(name, marks=pytest.mark.slow if name.startswith("spatial_") or name == "tempflow" else ())


@pytest.mark.parametrize("name", map(quick_or_slow, SHOWN))
def test_a_step_counts_what_show_prints(name, tmp_path):
    overrides = ["steps=1", "prompts_per_step=2", "eval_prompts={}", "threads=1", "watch={}", f"runs_dir={tmp_path}"]
    config = read(ROOT / f"configs/quickstart/{name}.yaml", [*overrides, "samples_every=0", "checkpoints.every=0"])
    text = "\n".join(lines(config))
    train(config)
    (row,) = metrics.read(config.folder / "metrics.jsonl")
    (network,) = re.findall(r"network calls per step: (.*)", text)
    planned = {f"calls/{kind}_calls": int(number) for number, kind in re.findall(r"(\d+) (\w+)", network)}
    counted = {name: number for name, number in row.items() if name.endswith("_calls") and "judge" not in name}
    if "at most" in text:
        assert 0.5 * planned["calls/train_calls"] < counted["calls/train_calls"] <= planned.pop("calls/train_calls")
        counted.pop("calls/train_calls")
    assert counted == planned and counted["calls/rollout_calls"] > 0
    (rewards,) = re.findall(r"reward calls per step: (\d+)", text)
    assert int(rewards) == row.get("calls/judge_calls", row["calls/rewards"])
    (pictures,) = re.findall(r"(?:pictures|texts) per step: (\d+)", text)
    assert int(pictures) == row["calls/rewards"] / len(config.rewards)
