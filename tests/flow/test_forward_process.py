"""Training on finished samples: draws of (t, noise), the policies asked at them, slow copies, resets; and bit-exact resume."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from children import command_line, in_child, launch
from safetensors.torch import load_file
from tiny_runs import record, weights, write_config

from grpo_mm.config.run_config import read
from grpo_mm.entry import train
from grpo_mm.pipelines.flow.engines.forward import EveryTimestep, ForwardProcess, Stratified
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.pipelines.flow.schedule import DiffusersSd3, Shifted
from grpo_mm.processes import clock
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.rows import plan_rows
from grpo_mm.training import trainer
from grpo_mm.training.learner import Learner
from grpo_mm.types import Prompt, Rollout
from grpo_mm.weights.snapshots import Ema, ReferenceReset, SamplingPolicy, Snapshots

PROMPTS = (Prompt("a", "a red circle"), Prompt("b", "a blue square"))
NFT = frozenset({"nft_plus", "nft_minus", "beta"})


@pytest.fixture(scope="module")
def policy(tiny_sd3):
    config = FlowPolicyConfig(model=Sd3(tiny_sd3), height=16, width=16, text_length=8, micro_batch=5)
    return config.load(torch.device("cpu"))


def rows(world: int = 1, rank: int = 0):
    return plan_rows(PROMPTS, group_size=3, parts=1, rank=rank, world=world)[0]


def roll(policy, where=None, *, needs=NFT, step=0, seed=0, **settings):
    engine = ForwardProcess(**({"steps": 6, "schedule": Shifted()} | settings))
    return engine.sample(policy, rows() if where is None else where, step=step, seed=seed, needs=needs)


# ── draws ──


@pytest.mark.parametrize(
    ("steps", "fraction", "count"), [(10, 0.99, 9), (8, 0.99, 7), (40, 0.99, 39), (10, 1.0, 10), (1, 0.5, 1)]
)
def test_every_timestep_draws_different_levels_of_the_sampler(steps, fraction, count):
    draws, sigma = EveryTimestep(fraction), DiffusersSd3()(steps, image_tokens=64)
    seen = set()
    for seed in range(200):
        t = draws(sigma, torch.Generator().manual_seed(seed))
        assert len(t) == len(set(t.tolist())) == draws.count(steps) == count
        seen |= set(t.tolist())
    assert seen == set(sigma[:-1].tolist())


@pytest.mark.parametrize(
    ("steps", "number", "fraction"), [(14, 6, 0.9), (10, 4, 1.0), (40, 6, 0.6), (5, 8, 0.9), (2, 3, 0.9)]
)
def test_stratified_draws_one_level_from_each_part_and_never_pure_noise(steps, number, fraction):
    draws, sigma = Stratified(number, fraction), Shifted()(steps, image_tokens=64)
    last = max(1, int((steps - 1) * fraction))
    seen = set()
    for seed in range(300):
        t = draws(sigma, torch.Generator().manual_seed(seed))
        assert len(t) == draws.count(steps) == number
        level = [sigma.tolist().index(v) for v in t.tolist()]
        assert all(1 <= i <= last for i in level)
        for stratum, i in enumerate(level):  # level i is the interval (i - 1, i] of `last`
            assert i > stratum * last / number - 1e-9 and i - 1 < (stratum + 1) * last / number + 1e-9
        seen |= set(level)
    assert seen == set(range(1, last + 1))


# ── the record ──


def test_states_lie_on_the_straight_path_between_sample_and_noise(policy):
    rollout, outputs = roll(policy)
    r = rollout.record
    assert r.sigma_NA.shape == (6, 5) == rollout.mask_NA.shape and r.noise_NA.shape == (6, 5, *r.clean_N.shape[1:])
    assert rollout.mask_NA.all() and rollout.behaviour_NA.isnan().all()
    x, t, place = r.network_input(torch.arange(30))
    for flat in (0, 7, 29):
        row, action = divmod(flat, 5)
        at = r.sigma_NA[row, action]
        torch.testing.assert_close(x[flat], (1 - at) * r.clean_N[row] + at * r.noise_NA[row, action])
        assert t[flat] == at and place[flat] == rollout.prompt_N[row]
    images = policy.decode(r.clean_N, size=(16, 16))
    assert torch.equal(images, outputs.items[outputs.item_index()]) and outputs.action_M is None
    assert torch.equal(outputs.row_M, torch.arange(6))


def test_the_old_velocity_is_that_of_the_policy_that_sampled(policy):
    rollout, _ = roll(policy, needs=NFT | {"matching_loss", "matching_loss_old"})
    found = policy.logprobs(
        rollout, policy.plan(rollout, rollout.mask_NA), needs=NFT | {"matching_loss", "matching_loss_old"}, grad=False
    )
    for _, values in found:
        torch.testing.assert_close(values["nft_plus"], values["nft_minus"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(values["matching_loss"], values["matching_loss_old"], rtol=1e-5, atol=0)
        assert values["matching_loss"].dtype == torch.float64 and (values["matching_loss"] > 0).all()


def test_other_weights_move_the_new_velocity_and_not_the_old(policy):
    rollout, _ = roll(policy, needs=NFT | {"matching_loss", "matching_loss_old"})
    needs = frozenset({"matching_loss", "matching_loss_old"})
    before = next(iter(policy.logprobs(rollout, [torch.arange(30)], needs=needs, grad=False)))[1]
    present = {name: p.detach().clone() for name, p in policy.trainable.items()}
    with torch.no_grad():
        for p in policy.trainable.values():
            p.mul_(1.2)
        after = next(iter(policy.logprobs(rollout, [torch.arange(30)], needs=needs, grad=True)))[1]
        for name, p in policy.trainable.items():
            p.copy_(present[name])
    assert torch.equal(after["matching_loss_old"], before["matching_loss_old"])
    assert not torch.allclose(after["matching_loss"], before["matching_loss"])
    assert after["matching_loss"].requires_grad and not after["matching_loss_old"].requires_grad


def same(a: Rollout, b: Rollout, *, rtol=0.0, atol=0.0) -> None:
    for name in ("clean_N", "noise_NA", "sigma_NA"):
        torch.testing.assert_close(getattr(a.record, name), getattr(b.record, name), rtol=rtol, atol=atol)
    assert a.record.velocity_NA.keys() == b.record.velocity_NA.keys()
    for name, velocity in a.record.velocity_NA.items():
        torch.testing.assert_close(velocity, b.record.velocity_NA[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("draws", [EveryTimestep(), Stratified()])
def test_a_rollout_does_not_depend_on_batch_or_rank(policy, draws):
    whole, outputs = roll(policy, draws=draws)
    same(roll(policy, draws=draws, rollout_batch=1)[0], whole, rtol=1e-4, atol=1e-5)
    for rank in range(3):
        where = rows(world=3, rank=rank)
        part, pictures = roll(policy, where, draws=draws)
        mine = torch.tensor(
            [
                int(((whole.prompt_N == p) & (whole.sample_N == s)).nonzero())
                for p, s in zip(where.prompt_N, where.sample_N, strict=True)
            ]
        )
        torch.testing.assert_close(part.record.sigma_NA, whole.record.sigma_NA[mine], rtol=0, atol=0)
        torch.testing.assert_close(part.record.noise_NA, whole.record.noise_NA[mine], rtol=0, atol=0)
        same(part, whole.take(mine), rtol=1e-4, atol=1e-5)
        difference = pictures.items[pictures.item_index()].int() - outputs.items[outputs.item_index()][mine].int()
        assert difference.abs().max() <= 1


def test_draws_depend_on_seed_step_prompt_and_sample(policy):
    whole = roll(policy)[0].record
    assert all(not torch.equal(whole.noise_NA[0], whole.noise_NA[i]) for i in range(1, 6))
    assert not torch.equal(whole.noise_NA[0, 0], whole.noise_NA[0, 1])
    for other in (roll(policy, seed=1)[0].record, roll(policy, step=1)[0].record):
        assert not torch.equal(other.noise_NA, whole.noise_NA) and not torch.equal(other.clean_N, whole.clean_N)


def test_rows_are_picked_and_joined_with_their_draws(policy):
    whole, _ = roll(policy)
    parts = [roll(policy, rows(world=2, rank=rank))[0] for rank in range(2)]
    joined = Rollout.cat(parts)
    assert torch.equal(joined.sample_N, whole.sample_N)
    same(joined, whole, rtol=1e-4, atol=1e-5)
    seen = [
        {k: v[r.record.network_input(torch.arange(30))[2]] for k, v in r.record.condition.items()}
        for r in (joined, whole)
    ]
    assert all(torch.equal(seen[0][k], seen[1][k]) and not torch.equal(v[0], v[-1]) for k, v in seen[1].items())
    picked = whole.take(torch.tensor([4, 1]))
    for flat, original in ((0, 20), (7, 7)):
        for a, b in zip(
            picked.record.network_input(torch.tensor([flat])), whole.record.network_input(torch.tensor([original]))
        ):
            assert torch.equal(a, b)
    back = Rollout.cat([picked, whole.take(torch.tensor([0]))])
    x, t, place = back.record.network_input(torch.arange(15))
    conditions = {k: v[place] for k, v in back.record.condition.items()}
    wanted = {k: v[whole.prompt_N[[4, 1, 0]].repeat_interleave(5)] for k, v in whole.record.condition.items()}
    assert all(torch.equal(conditions[k], wanted[k]) for k in wanted) and len(x) == len(t) == 15


def test_a_velocity_that_nobody_asks_for_is_not_stored(policy):
    assert roll(policy, needs=frozenset())[0].record.velocity_NA == {}
    assert set(roll(policy, needs=frozenset({"matching_loss_old"}))[0].record.velocity_NA) == {"old"}


# ── runs ──

NFT_RUN = {
    "engine": {
        "kind": "forward_process",
        "steps": 4,
        "eval_steps": 2,
        "draws": {"kind": "every_timestep", "fraction": 0.99},
    },
    "objective": [{"kind": "nft"}, {"kind": "kl", "form": "velocity", "weight": 1e-2}],
    "eval_prompts": None,
    "checkpoints": {"every": 0},
    "samples_every": 0,
}
AWM_RUN = NFT_RUN | {
    "engine": {"kind": "forward_process", "steps": 5, "eval_steps": 2, "draws": {"kind": "stratified", "number": 3}},
    "objective": [
        {"kind": "awm"}, {"kind": "kl", "form": "velocity"}, {"kind": "kl", "form": "velocity", "to": "ema", "weight": 0.01},
    ],
    "ema": {"every_updates": 1, "slope": 0.001, "decay": 0.3},
}  # fmt: skip


def learner(model, folder, changes, *overrides) -> Learner:
    config = read(write_config(folder, model, changes), list(overrides))
    config.check()
    return Learner(config, Processes(device="cpu"), samples=folder)


# 2 prompts × 4 samples: 4 or 5 rollout calls for each, and 3 draws of either kind.
PLANS = {
    "nft": (NFT_RUN, {"rollout": 32, "train": 24, "old": 24, "ref": 24}),
    "awm": (AWM_RUN, {"rollout": 40, "train": 24, "old": 24, "ref": 24, "ema": 24}),
    "awm by rows": (
        AWM_RUN | {"objective": [{"kind": "awm", "ratio": "row"}], "ema": None},
        {"rollout": 40, "train": 24, "old": 24, "value": 24},
    ),
    "guided nft": (
        NFT_RUN | {"policy": {"guidance": 2.0}}, {"rollout": 64, "train": 48, "old": 48, "ref": 48},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_step_makes_the_planned_network_calls(name, tiny_sd3, tmp_path):
    changes, planned = PLANS[name]
    run = learner(tiny_sd3, tmp_path, changes)
    assert run.config.network_calls() == planned
    here = clock.use(clock.Clock())
    run.step(0)
    counted = here.take()[1]
    assert {k.removesuffix("_calls"): v for k, v in counted.items() if k.endswith("_calls")} == planned


@pytest.mark.parametrize("changes", [NFT_RUN, AWM_RUN], ids=["nft", "awm"])
def test_two_updates_on_a_rollout_start_at_the_policy_that_sampled_and_leave_it(changes, tiny_sd3, tmp_path):
    run = learner(tiny_sd3, tmp_path, changes, "optim.lr=1e-2", "updates.by=action")
    found = run.step(0)
    assert run.counters["updates"] == 2
    # The first update is exactly on-policy, the second is not; the mean of both is logged.
    if changes is AWM_RUN:
        assert found["objective/ratio"] != 1 and found["objective/approx_kl"] > 0
        alone = learner(tiny_sd3, tmp_path, changes, "updates.count=1").step(0)
        assert alone["objective/ratio"] == pytest.approx(1, abs=1e-5) and alone["objective/clip_frac"] == 0
    else:
        assert found["objective/nft_plus"] != pytest.approx(found["objective/nft_minus"], rel=1e-6)
        alone = learner(tiny_sd3, tmp_path, changes, "updates.count=1").step(0)
        assert alone["objective/nft_plus"] == pytest.approx(alone["objective/nft_minus"], rel=1e-5)
        assert alone["objective/ref_kl"] == pytest.approx(0, abs=1e-9)


# ── slow copies ──


def test_rollouts_come_from_the_slow_copy_and_so_does_the_old_velocity(tiny_sd3, tmp_path):
    run = learner(tiny_sd3, tmp_path, NFT_RUN | {"sampling": {"slope": 0.001, "limit": 0.5}})
    (before,), _ = run.rollout(0)
    with torch.no_grad():
        for p in run.params:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    present = {k: p.detach().clone() for k, p in run.policy.trainable.items()}
    (after,), _ = run.rollout(0)
    same(after.rollout, before.rollout)
    assert torch.equal(after.outputs.items, before.outputs.items)
    assert all(torch.equal(p, present[k]) for k, p in run.policy.trainable.items())
    run.policy.snapshots.take("sampling")
    (moved,), _ = run.rollout(0)
    assert not torch.equal(moved.rollout.record.clean_N, before.rollout.record.clean_N)
    assert torch.equal(moved.rollout.record.noise_NA, before.rollout.record.noise_NA)
    assert not torch.equal(moved.rollout.record.velocity_NA["old"], before.rollout.record.velocity_NA["old"])


def test_recomputed_log_probabilities_are_those_of_the_slow_copy_too(tiny_sd3, tmp_path):
    changes = NFT_RUN | {
        "engine": {"steps": 3}, "policy": {"dtype": "float64"}, "sampling": {"slope": 0.5}, "updates": {"count": 1},
        "objective": [{"kind": "divergence_mask"}], "optim": {"lr": 1e-2},
    }  # fmt: skip
    found = {}
    for old in ("rollout", "recompute"):
        run = learner(tiny_sd3, tmp_path, changes, f"old_logprobs={old}")
        found[old] = [run.step(step) for step in range(3)][-1]
    assert found["recompute"] == pytest.approx(found["rollout"], rel=1e-6)
    assert found["rollout"]["objective/divergence"] > 1e-12 and found["rollout"]["objective/ratio"] != 1


def test_the_slow_copy_follows_by_the_published_laws():
    law = SamplingPolicy()
    assert [law.decay_at(i) for i in (0, 1, 250, 500, 9999)] == pytest.approx([0, 0.001, 0.25, 0.5, 0.5])
    cautious = SamplingPolicy(start=75, slope=0.0075, limit=0.999)
    assert [cautious.decay_at(i) for i in (0, 75, 76, 175, 208, 209, 9999)] == pytest.approx(
        [0, 0, 0.0075, 0.75, 0.9975, 0.999, 0.999]
    )
    for wrong in (dict(limit=1.0), dict(slope=-1), dict(start=-1)):
        with pytest.raises(ValueError, match="wanted 0 or more, and a limit below 1"):
            SamplingPolicy(**wrong)


def test_the_fast_average_of_awm_follows_by_its_law():
    law = Ema(decay=0.3, slope=0.001, every_updates=1)
    assert [law.decay_at(i) for i in (0, 100, 300, 5000)] == pytest.approx([0, 0.1, 0.3, 0.3])


def test_a_step_moves_the_slow_copy_by_the_decay_of_that_step(tiny_sd3, tmp_path):
    run = learner(tiny_sd3, tmp_path, NFT_RUN | {"sampling": {"slope": 0.25, "limit": 0.5}})

    def copies():
        return {k: v.clone() for k, v in run.policy.snapshots.state().items() if k.startswith("sampling/")}

    for step, decay in enumerate((0, 0.25, 0.5, 0.5)):
        before = copies()
        run.step(step)
        for name, copy in copies().items():
            weight = run.policy.trainable[name.removeprefix("sampling/")].detach()
            torch.testing.assert_close(copy, decay * before[name] + (1 - decay) * weight, rtol=1e-6, atol=1e-8)
            assert decay or torch.equal(copy, weight)


# ── reference resets ──


def test_a_reset_is_due_by_steps_or_by_kl():
    assert [ReferenceReset(every=3).is_due(n, 99.0) for n in (1, 2, 3, 4)] == [False, False, True, True]
    assert [ReferenceReset(kl_above=0.1).is_due(9, kl) for kl in (0.0, 0.1, 0.2, float("nan"))] == [
        False,
        False,
        True,
        False,
    ]
    both = ReferenceReset(every=3, kl_above=0.1)
    assert both.is_due(1, 0.2) and both.is_due(3, 0.0) and not both.is_due(1, 0.0)
    for wrong in (dict(), dict(every=0)):
        with pytest.raises(ValueError, match="wanted at least one of them"):
            ReferenceReset(**wrong)


@pytest.mark.parametrize(("reset", "due"), [({"every": 2}, [0, 1, 0, 1, 0]), ({"kl_above": 1e-12}, [0, 1, 0, 1, 0])])
def test_the_kl_falls_to_zero_after_a_reset_which_is_logged(reset, due, tiny_sd3, tmp_path):
    changes = NFT_RUN | {"reference_reset": reset, "updates": {"by": "group", "count": 1}}
    run = learner(tiny_sd3, tmp_path, changes)
    found = [run.step(step) for step in range(5)]
    assert [f["policy/reference_reset"] for f in found] == due
    kl = [f["objective/ref_kl"] for f in found]
    # Zero up to the batch shape of the reference's forward on the first step and after each reset.
    assert all(kl[step] < 1e-12 for step in (0, 2, 4)) and all(kl[step] > 1e-10 for step in (1, 3))
    assert run.counters["since_reset"] == 1


def test_a_gate_and_a_guard_reward_train_together(tiny_sd3, tmp_path):
    """GARDO whole: gate, resets, diversity left out; the gated KL is a part of the loss of its rows only."""
    changes = NFT_RUN | {
        "rewards": {"dark": {"use": "tiny_rewards:dark", "weight": 0}},
        "advantage": [
            {"kind": "gardo_gate", "against": ["dark"], "share": 0.5}, {"kind": "group_norm", "scale": "none"},
            {"kind": "weighted_sum"},
        ],
        "objective": [{"kind": "nft"}, {"kind": "kl", "form": "velocity", "gate": "kl_gate", "weight": 1.0}],
        "reference_reset": {"every": 5},
    }  # fmt: skip
    run = learner(tiny_sd3, tmp_path, changes)
    run.step(0)
    found = run.step(1)
    assert 0 < found["loss/ref_kl"] < found["objective/ref_kl"]


# ── going on ──

STATEFUL_RUN = {
    "steps": 4,
    "engine": {"steps": 4, "kernel": "dance_sde", "noise": {"kind": "calibrated", "turns": 9}, "tree": {"kind": "clean_images"}},
    "advantage": [
        {"kind": "weighted_sum"}, {"kind": "gains"}, {"kind": "group_norm", "key": ["prompt", "action"]}, {"kind": "clamp"},
    ],
    "objective": [{"kind": "clipped_ratio", "clip_low": 0.1, "clip_high": 0.1}, {"kind": "kl", "form": "gaussian"}],
    "sampling": {"slope": 0.2, "limit": 0.5},
    "reference_reset": {"every": 3},
    "eval_prompts": None,
    "samples_every": 0,
}  # fmt: skip
RUNS = {
    "calibrated": STATEFUL_RUN,
    "nft": NFT_RUN
    | {"steps": 4, "checkpoints": {"every": 1}, "sampling": {"slope": 0.2}, "reference_reset": {"every": 3}},
    "awm": AWM_RUN | {"steps": 4, "checkpoints": {"every": 1}},
}


def dies_after(calls: int, function):
    left = [calls]

    def wrapped(*args):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*args)

    return wrapped


@pytest.mark.parametrize(
    "name", ["calibrated", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nft", "awm"))]
)
def test_a_killed_run_goes_on_bit_for_bit_with_all_that_follows_the_weights(name, tiny_sd3, tmp_path):
    runs = {}
    for how in ("whole", "killed"):
        (tmp_path / how).mkdir()
        config = write_config(tmp_path / how, tiny_sd3, RUNS[name])
        if how == "killed":
            dies = (trainer.metrics, "append", dies_after(2, trainer.metrics.append))
            assert in_child(command_line("train", config), tmp_path / "killed.txt", patches=[dies]) == -signal.SIGKILL
        train(config)
        runs[how] = tmp_path / how / "runs/tiny"
    assert record(runs["killed"]) == record(runs["whole"]) and weights(runs["killed"], 4) == weights(runs["whole"], 4)
    for file in ("snapshots.safetensors", "optimizer.safetensors"):
        found = [(run / "checkpoints/step_000004" / file).read_bytes() for run in runs.values()]
        assert found[0] == found[1], file
    states = [json.loads((run / "checkpoints/step_000004/state.json").read_text())["learner"] for run in runs.values()]
    assert states[0] == states[1]
    if name == "calibrated":
        levels = [[v for k, v in sorted(row.items()) if k.startswith("noise/level_")] for row in record(runs["whole"])]
        levels = [row for row in levels if row]
        assert len(levels) == 4 and all(len(row) == 3 for row in levels)
        for before, after in zip(levels, levels[1:]):
            assert [abs(a - b) for a, b in zip(before, after)] == pytest.approx([0.01] * 3, abs=1e-6)
        assert states[0]["parts"]["engine.noise"]["rounds"] == 4
    if name != "awm":
        assert [row["policy/reference_reset"] for row in record(runs["whole"]) if "policy/reference_reset" in row] == [
            0,
            0,
            1,
            0,
        ]


# ── exactness ──

EXACT = {"steps": 3, "policy": {"dtype": "float64", "micro_batch": 32}, "checkpoints": {"every": 0}}
BY_ROWS = {"objective": [{"kind": "awm", "ratio": "row", "clip_low": 0.5, "clip_high": 0.5}], "ema": None}


def exact(folder: Path, model: str, name: str, **policy) -> Path:
    folder.mkdir(parents=True)
    changes = (RUNS | {"awm by rows": AWM_RUN | BY_ROWS})[name] | EXACT
    return write_config(folder, model, changes | {"policy": changes["policy"] | policy})


def last(config: Path) -> dict[str, torch.Tensor]:
    folder = config.parent / "runs/tiny/checkpoints/step_000003"
    return load_file(folder / "weights.safetensors") | load_file(folder / "snapshots.safetensors")


@pytest.fixture(scope="module")
def alone(tiny_sd3, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("alone")
    configs = {name: exact(folder / name, tiny_sd3, name) for name in [*RUNS, "awm by rows"]}
    for config in configs.values():
        train(config)
    return configs


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert max(float((found[k] - wanted[k]).abs().max()) for k in wanted) < 1e-9
    assert max(float(v.abs().max()) for k, v in wanted.items() if "lora_B" in k) > 1e-4


@pytest.mark.parametrize("name", [*RUNS, "awm by rows"])
def test_micro_batches_do_not_change_three_steps(name, alone, tiny_sd3, tmp_path):
    config = exact(tmp_path / "run", tiny_sd3, name, micro_batch=5)
    train(config)
    assert_equal(last(config), last(alone[name]))


@pytest.mark.slow
def test_two_processes_train_as_one(alone, tiny_sd3, tmp_path):
    together = {name: exact(tmp_path / name, tiny_sd3, name) for name in alone}
    script = tmp_path / "train_all.py"
    script.write_text("import sys\nfrom grpo_mm.entry import train\nfor path in sys.argv[1:]:\n    train(path)\n")
    launch(script, *together.values())
    for name, config in together.items():
        assert_equal(last(config), last(alone[name]))
        one, two = (record(path.parent / "runs/tiny") for path in (alone[name], config))
        for row, other in zip(one, two, strict=True):
            assert row.keys() == other.keys()
            assert all(other[k] == pytest.approx(row[k], rel=1e-6, abs=1e-9) for k in row if row[k] is not None)


def test_copies_are_averaged_exactly():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    snapshots = Snapshots({"p": p})
    snapshots.take("slow")
    with torch.no_grad():
        p.copy_(torch.tensor([3.0, -2.0]))
    snapshots.average("slow", 0.75)
    assert snapshots.state()["slow/p"].tolist() == [1.5, 1.0]
    with snapshots.use("slow"):
        assert p.tolist() == [1.5, 1.0]
    assert p.tolist() == [3.0, -2.0]
    snapshots.average("slow", 0.0)
    assert snapshots.state()["slow/p"].tolist() == [3.0, -2.0]
