"""Where a rollout is random, which of its steps are trained, and where its noise comes from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import mean

import pytest
import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.engines.engine import FlowEngine
from grpo_mm.pipelines.flow.kernels import cps, ddim, flow_sde, ode
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.noise import AllSteps, SlidingWindow, Window, trained_mask, trained_subset
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.pipelines.flow.sampling import initial_noise
from grpo_mm.pipelines.flow.schedule import DiffusersSd3, Shifted
from grpo_mm.pipelines.flow.solver import DpmSolverPP, Euler, dpmpp_2m
from grpo_mm.processes.rng import stream
from grpo_mm.rollout.rows import plan_rows
from grpo_mm.types import Prompt, Rows

PROMPTS = (Prompt("p/0", "a red circle"), Prompt("p/1", "a photo of the blue square"))


def noisy(noise, steps: int, *, step: int = 0, seed: int = 0) -> list[int]:
    """The denoising steps with noise, in training step `step`."""
    return torch.nonzero(noise(Shifted()(steps, image_tokens=64), step=step, seed=seed)).flatten().tolist()


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_steps_leaves_the_last_one_out_unless_asked():
    assert noisy(AllSteps(), 5) == [0, 1, 2, 3]
    assert noisy(AllSteps(last=True), 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("schedule", [Shifted(), DiffusersSd3()])
@pytest.mark.parametrize("noise", [AllSteps(), AllSteps(last=True)])
def test_the_last_step_is_never_trained(schedule, noise):
    sigma_S1 = schedule(10, image_tokens=64)
    mask_S = trained_mask(noise(sigma_S1, step=0, seed=0), sigma_S1)
    assert mask_S.tolist() == [True] * 9 + [False]


def test_a_window_as_wide_as_its_range_is_fixed():
    window = Window(size=3, within=(1, 4), level=0.8)
    assert all(noisy(window, 10, step=step) == [1, 2, 3] for step in range(20))
    assert window(Shifted()(10, image_tokens=64), step=0, seed=0).unique().tolist() == pytest.approx([0, 0.8])


def test_a_random_window_is_drawn_for_each_step_evenly_and_reproducibly():
    window = Window(size=3, within=(0, 5))
    starts = [noisy(window, 10, step=step)[0] for step in range(300)]
    assert all(noisy(window, 10, step=step) == [s, s + 1, s + 2] for step, s in enumerate(starts))
    assert min(Counter(starts).values()) > 70 and set(starts) == {0, 1, 2}
    assert starts == [noisy(window, 10, step=step)[0] for step in range(300)]
    assert starts != [noisy(window, 10, step=step, seed=1)[0] for step in range(300)]


def test_a_progressive_window_slides_and_returns():
    window = SlidingWindow(size=4, every=25)
    assert window.trained_steps(25) == 4
    assert [noisy(window, 25, step=step) for step in (0, 24, 25, 50)] == [[0, 1, 2, 3]] * 2 + [
        [1, 2, 3, 4],
        [2, 3, 4, 5],
    ]
    positions = 21  # 0 … 20: the window may not touch step 24
    assert noisy(window, 25, step=25 * positions - 1) == [20, 21, 22, 23]
    assert noisy(window, 25, step=25 * positions) == [0, 1, 2, 3]
    assert noisy(replace(window, roll_back=False), 25, step=10**6) == [20, 21, 22, 23]


def test_a_stride_that_overshoots_stops_at_the_last_position():
    window = SlidingWindow(size=2, every=1, stride=3)
    assert [noisy(window, 8, step=step)[0] for step in range(4)] == [0, 3, 5, 0]


def test_a_random_sliding_window_visits_every_position():
    window = SlidingWindow(size=2, strategy="random")
    starts = [noisy(window, 6, step=step)[0] for step in range(100)]
    assert set(starts) == {0, 1, 2, 3}
    assert starts == [noisy(window, 6, step=step)[0] for step in range(100)]


def test_a_decaying_window_stays_ever_shorter():
    window = SlidingWindow(size=2, every=10, strategy="decay")
    stays = Counter(noisy(window, 7, step=step)[0] for step in range(10 + 8 + 6 + 3 + 1))
    assert stays == {0: 10, 1: 8, 2: 6, 3: 3, 4: 1}  # linear from 10 to 1 over five positions, rounded
    assert noisy(window, 7, step=28)[0] == 0


def test_a_frozen_window_stays_at_the_start():
    assert {tuple(noisy(SlidingWindow(strategy="frozen"), 25, step=step)) for step in range(0, 2000, 50)} == {
        (0, 1, 2, 3)
    }


@pytest.mark.parametrize("strategy", ["progressive", "random", "decay", "frozen"])
@pytest.mark.parametrize("steps, size, stride", [(5, 4, 1), (10, 4, 3), (25, 4, 1), (3, 1, 2)])
@pytest.mark.parametrize("roll_back", [True, False])
def test_a_sliding_window_is_never_empty_and_never_on_the_last_step(strategy, steps, size, stride, roll_back):
    window = SlidingWindow(size=size, every=3, stride=stride, strategy=strategy, roll_back=roll_back)
    window.check(steps)
    for step in range(200):
        got = noisy(window, steps, step=step)
        assert len(got) == size
        assert got == list(range(got[0], got[0] + size))
        assert got[-1] <= steps - 2


@pytest.mark.parametrize(
    "noise, steps",
    [
        (Window(size=0, within=(0, 3)), 10),
        (Window(size=3, within=(4, 6)), 10),
        (Window(size=3, within=(8, 11)), 10),
        (Window(size=2, within=(0, 10)), 10),
        (Window(size=2, within=(-1, 3)), 10),
        (SlidingWindow(size=0), 10),
        (SlidingWindow(size=4), 4),
        (SlidingWindow(size=4, every=0), 10),
        (SlidingWindow(size=4, stride=0), 10),
        (AllSteps(), 1),
    ],
)
def test_empty_and_overrunning_windows_are_refused(noise, steps):
    with pytest.raises(ConfigError):
        FlowEngine(steps=steps, noise=noise).check(FlowPolicyConfig(model=None), group_size=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel": ode}, {"noise": AllSteps(level=0.0)}, {"noise": AllSteps(level=-0.7)}, {"train_fraction": 0.0},
        {"train_fraction": 1.1}, {"rollout_batch": 0}, {"eval_steps": 0}, {"steps": 0},
        {"kernel": cps, "noise": AllSteps(level=1.2)}, {"kernel": ddim, "noise": AllSteps(level=1.2)},
    ],
)  # fmt: skip
def test_an_engine_without_usable_noise_is_refused(settings):
    with pytest.raises(ConfigError):
        FlowEngine(**settings).check(FlowPolicyConfig(model=None), group_size=4)


@pytest.mark.parametrize("ratio", [0.0, -0.4, 1.5])
def test_a_tail_is_kept_by_a_share(ratio):
    with pytest.raises(ConfigError):
        DpmSolverPP(keep_ratio=ratio)


# ── trained subsets ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fraction, noisy_steps, wanted", [(0.6, 9, 6), (0.6, 10, 6), (0.6, 15, 9), (0.01, 9, 1), (1.0, 9, 9)]
)
def test_a_subset_holds_the_fraction_rounded_up(fraction, noisy_steps, wanted):
    subset = trained_subset(noisy_steps, fraction=fraction, generator=stream(0, "test"))
    assert len(set(subset.tolist())) == wanted
    assert subset.tolist() == sorted(subset.tolist())
    assert set(subset.tolist()) <= set(range(noisy_steps))
    assert FlowEngine(steps=noisy_steps + 1, train_fraction=fraction).actions() == wanted


# ── MixGRPO-Flash ───────────────────────────────────────────────────────────────────────────────────────────────────


def compressed(start: int, *, ratio: float, steps: int = 25, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    window = Window(size=size, within=(start, start + size))
    sigma_S1 = Shifted()(steps, image_tokens=64)
    return DpmSolverPP(keep_ratio=ratio).grid(sigma_S1, window(sigma_S1, step=0, seed=0))


@pytest.mark.parametrize("start", [0, 7, 20])
def test_only_what_comes_after_the_window_is_compressed(start):
    full = Shifted()(25, image_tokens=64)
    sigma, level = compressed(start, ratio=0.4)
    kept = start + 4 + 1  # up to and including the σ after the window
    assert torch.equal(sigma[:kept], full[:kept])
    assert torch.nonzero(level).flatten().tolist() == list(range(start, start + 4))
    assert len(sigma) == len(level) + 1
    assert sigma[-1] == 0 and (sigma.diff() < 0).all()
    # The tail is spaced evenly on the unshifted grid.
    u = sigma[kept - 1 :] / (3 - 2 * sigma[kept - 1 :])
    torch.testing.assert_close(u.diff(), u.diff().mean().expand(len(u) - 1), rtol=1e-4, atol=1e-6)


def test_flash_makes_the_published_number_of_network_calls():
    def calls(start: int, ratio: float) -> int:
        return len(compressed(start, ratio=ratio)[1])

    assert calls(0, 0.4) == 4 + 8
    assert calls(0, 0.2) == 8  # Flash*: frozen at the start
    visited = range(300 // 20)  # 300 iterations, τ = 20
    assert round(mean(calls(start, 0.4) for start in visited)) == 16


def test_a_tail_of_any_length_ends_at_zero_and_an_absent_one_stays_absent():
    sigma = Shifted()(6, image_tokens=64)
    for noise in (AllSteps(), AllSteps(last=True), Window(size=1, within=(0, 1))):
        level = noise(sigma, step=0, seed=0)
        got_sigma, got_level = DpmSolverPP(keep_ratio=0.1).grid(sigma, level)
        assert got_sigma[-1] == 0 and (got_sigma.diff() < 0).all()
        assert got_level.count_nonzero() == level.count_nonzero()
    for solver in (Euler(), DpmSolverPP(keep_ratio=1.0)):
        assert torch.equal(solver.grid(sigma, level)[0], sigma)


# ── rollouts of a tiny model ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def policy(tiny_sd3):
    config = FlowPolicyConfig(model=Sd3(tiny_sd3), height=16, width=16, text_length=8)
    return config.load(torch.device("cpu"))


def rows(world: int = 1, rank: int = 0, prompts: tuple[Prompt, ...] = PROMPTS) -> Rows:
    return plan_rows(prompts, group_size=3, parts=1, rank=rank, world=world)[0]


def roll(policy, where: Rows | None = None, *, step: int = 0, seed: int = 0, **settings):
    engine = FlowEngine(**({"steps": 5, "schedule": Shifted()} | settings))
    return engine.sample(policy, rows() if where is None else where, step=step, seed=seed, needs=frozenset())


@pytest.mark.parametrize(
    "noise, kept",
    [
        (AllSteps(), [0, 1, 2, 3]),
        (AllSteps(last=True), [0, 1, 2, 3]),
        (Window(size=2, within=(1, 3)), [1, 2]),
        (SlidingWindow(size=1), [0]),
    ],
)
def test_only_noisy_steps_are_kept_and_trained(policy, noise, kept):
    rollout, _ = roll(policy, noise=noise)
    assert rollout.record.step_NA.tolist() == [kept] * 6
    assert rollout.record.x_NA.shape == (6, len(kept), 4, 8, 8)
    assert rollout.mask_NA.all() and rollout.mask_NA.shape == (6, len(kept))
    assert rollout.num_actions == FlowEngine(steps=5, noise=noise).actions()
    assert rollout.behaviour_NA.isfinite().all()
    covered = torch.cat(policy.plan(rollout, rollout.mask_NA)).sort().values
    assert torch.equal(covered, torch.arange(6 * len(kept)))


def test_stored_steps_of_a_window_follow_on_from_each_other(policy):
    record = roll(policy, noise=Window(size=3, within=(1, 4)))[0].record
    assert torch.equal(record.next_NA[:, :-1], record.x_NA[:, 1:])
    assert not torch.equal(record.next_NA[:, 0], record.x_NA[:, 0])


def test_each_row_trains_its_own_part_of_the_steps(policy):
    settings = {"steps": 10, "train_fraction": 0.6}
    rollout, _ = roll(policy, **settings)
    steps_NA = rollout.record.step_NA
    assert steps_NA.shape == (6, 6) and rollout.num_actions == 6
    assert len({tuple(row) for row in steps_NA.tolist()}) > 1
    assert all(row == sorted(set(row)) and max(row) < 9 for row in steps_NA.tolist())
    full = roll(policy, steps=10)[0].record
    picked = full.x_NA[torch.arange(6)[:, None], steps_NA]
    torch.testing.assert_close(rollout.record.x_NA, picked)
    assert torch.equal(steps_NA, roll(policy, **settings)[0].record.step_NA)
    for changed in ({"step": 1}, {"seed": 1}):
        assert not torch.equal(steps_NA, roll(policy, **settings, **changed)[0].record.step_NA)


@pytest.mark.parametrize("shared", [True, False])
def test_initial_noise_is_shared_within_a_group_only_when_asked(policy, shared):
    record = roll(policy, seeds=1 if shared else None, noise=Window(size=2, within=(0, 2)))[0].record
    start, after = record.x_NA[:, 0].view(2, 3, -1), record.next_NA[:, 0].view(2, 3, -1)
    same = (start[:, 0] == start[:, 1]).all()
    assert bool(same) == shared
    assert not torch.equal(start[0], start[1])
    assert (after[:, 0] != after[:, 1]).any(), "the noise of the steps stays independent"
    assert float(start.std()) == pytest.approx(1, abs=0.1)


def test_noise_depends_on_seed_step_prompt_and_sample_only(policy):
    def noise(prompts=PROMPTS, **changed):
        keys = [(prompt, i) for prompt in prompts for i in range(3)]
        return initial_noise(policy, keys, size=(16, 16), **({"seed": 0, "step": 0} | changed))

    here = noise()
    assert torch.equal(here, noise(PROMPTS[::-1]).roll(3, 0))
    assert len({tuple(row) for row in here.flatten(1)[:, :4].tolist()}) == 6
    for changed in ({"seed": 1}, {"step": 1}, {"step": "eval"}):
        assert not (noise(**changed) == here).any()


@pytest.mark.parametrize(
    "settings", [{}, {"train_fraction": 0.5}, {"solver": DpmSolverPP(), "noise": Window(size=2, within=(1, 3))}]
)
def test_a_rollout_does_not_depend_on_batch_or_rank(policy, settings):
    whole, images = roll(policy, **settings)
    in_threes = roll(policy, rollout_batch=4, **settings)
    by_rank = [roll(policy, rows(world=2, rank=rank), **settings) for rank in (0, 1)]
    # Noise comes from the same streams; what is left is the network's rounding in another batch.
    for parts in ([in_threes], by_rank):
        for name in ("x_NA", "next_NA"):
            joined = torch.cat([getattr(rollout.record, name) for rollout, _ in parts])
            torch.testing.assert_close(joined, getattr(whole.record, name), rtol=0, atol=1e-5)
        assert torch.equal(torch.cat([rollout.record.step_NA for rollout, _ in parts]), whole.record.step_NA)
        joined = torch.cat([outputs.items for _, outputs in parts])
        assert (joined.int() - images.items.int()).abs().max() <= 1


def test_noisy_steps_feed_the_history_of_the_solver(policy):
    settings = {"steps": 6, "noise": Window(size=1, within=(3, 4))}
    rollout, outputs = roll(policy, solver=DpmSolverPP(), **settings)
    record = rollout.record
    sigma = record.sigma_S1
    x, velocity = record.x_NA[:, 0], policy._velocity_at(record, record.from_NA[:, 0])
    history = [sigma[3], x - sigma[3] * velocity]
    x = record.next_NA[:, 0]
    condition = {k: v[record.condition_V[record.from_NA[:, 0]]] for k, v in record.condition.items()}
    for i in (4, 5):
        with torch.no_grad():
            velocity = policy.velocity(x, sigma[i].expand(6), condition, size=(16, 16), guidance=1.0)
        clean = x - sigma[i] * velocity
        x = dpmpp_2m(x, clean, sigma[i], sigma[i + 1], history[1], history[0])
        history = [sigma[i], clean]
    images = policy.decode(x, size=(16, 16)).int()
    assert (images - outputs.items.int()).abs().max() <= 1
    euler = roll(policy, solver=Euler(), **settings)
    assert (record.x_NA - euler[0].record.x_NA).abs().max() > 1e-4
    assert (images - euler[1].items.int()).abs().max() > 1


def test_noise_of_a_step_has_unit_variance_and_is_not_reused(policy):
    record = roll(policy, kernel=flow_sde)[0].record
    assert torch.equal(record.sigma_S1, Shifted()(5, image_tokens=16))
    sigma, sigma_next, level = record.sigmas()
    noise = []
    for action in range(4):
        x = record.x_NA[:, action]
        velocity = policy._velocity_at(record, record.from_NA[:, action])
        mean_n, std = flow_sde(x, velocity, sigma[:, action], sigma_next[:, action], level[:, action])
        noise.append(((record.next_NA[:, action] - mean_n) / std).flatten())
    noise = torch.stack(noise)
    assert noise.std(1).tolist() == pytest.approx([1] * 4, abs=0.06)
    assert (torch.corrcoef(noise) - torch.eye(4)).abs().max() < 0.1
