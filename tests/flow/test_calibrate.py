"""DenseGRPO's noise calibration: the law by hand, the file it leaves, and a run that calibrates on the way."""

from __future__ import annotations

import json
import math

import pytest
import torch
from children import command_line, in_child
from tiny_runs import ROOT, record, write_config

from grpo_mm.config.run_config import plain, read
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError, TrainingStopped
from grpo_mm.pipelines.flow import kernels
from grpo_mm.pipelines.flow.calibrated import Calibrated, NoiseFile, flow_sde_levels, write_noise
from grpo_mm.pipelines.flow.schedule import DiffusersSd3, Shifted
from grpo_mm.rollout.table import Table, gather
from grpo_mm.tools.calibrate import calibrate
from grpo_mm.types import BASELINE
from grpo_mm.weights.stateful import load_parts, part_metrics, stateful_parts

SIGMA = Shifted()(4, image_tokens=64)
BASE = [0.7 * math.sqrt(s / (1 - r)) for s, r in [(1, 0.9), (0.9, 0.9), (0.75, 0.75)]]


# ── the start ──


@pytest.mark.parametrize("schedule", [Shifted(), DiffusersSd3()])
@pytest.mark.parametrize("steps", [4, 10])
def test_levels_start_at_the_curve_of_flow_sde(schedule, steps):
    """The same mean and std as Flow-SDE with a, by the kernel of constant g: also at σ = 1."""
    sigma = schedule(steps, image_tokens=64)
    level_S = Calibrated(start=0.7, floor=1e-3)(sigma, step=0, seed=0)
    assert level_S.dtype == torch.float32 and level_S.shape == (steps,) and level_S[-1] == 0
    x, v = torch.tensor([0.5]), torch.tensor([-0.3])
    for i in range(steps - 1):
        wanted = kernels.flow_sde(x, v, sigma[i], sigma[i + 1], torch.tensor(0.7))
        found = kernels.dance_sde(x, v, sigma[i], sigma[i + 1], level_S[i])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert float(kernels.dance_sde(x, v, sigma[0], sigma[1], level_S[0])[1]) == pytest.approx(0.7, rel=1e-5)


def test_no_level_starts_below_the_floor():
    level_S = Calibrated(start=0.01, floor=0.05)(SIGMA, step=0, seed=0)
    assert level_S.tolist() == pytest.approx([0.05, 0.05, 0.05, 0])
    torch.testing.assert_close(flow_sde_levels(SIGMA, 0.7)[:3], torch.tensor(BASE), rtol=1e-5, atol=0)


# ── the law ──


def scores(gains_SG):
    """The raw table of one prompt whose three steps gained so much, one list of samples for each step."""
    gain_SG = torch.tensor(gains_SG, dtype=torch.float64)
    score = torch.cat([torch.zeros_like(gain_SG[:1]), gain_SG.cumsum(0)]).T  # [G, S + 1]
    samples, states = score.shape
    size = samples * states
    return Table(
        values={"r": score.flatten()},
        columns={
            "prompt": torch.zeros(size, dtype=torch.int64),
            "sample": torch.arange(samples).repeat_interleave(states),
            "action": torch.tensor([BASELINE, *range(states - 1)]).repeat(samples),
            "tag": torch.zeros(size, dtype=torch.int64),
            "failed": score.flatten().isnan(),
        },
        weights={"r": 1.0},
    )


def balance(*differences, samples=6):
    """A table in which step i has that many more gains than losses among its samples."""
    steps = []
    for p_minus_q in differences:
        ups = (samples + p_minus_q) // 2
        steps.append([1.0] * ups + [-1.0] * (samples - ups))
    return scores(steps)


def shifts(noise):
    noise(SIGMA, step=0, seed=0)
    return [round((level - base) / 0.01) for level, base in zip(noise(SIGMA, step=0, seed=0).tolist(), BASE)]


def fresh(**settings):
    noise = Calibrated(**settings)
    noise(SIGMA, step=0, seed=0)
    return noise


def test_a_level_rises_where_gains_and_losses_balance_and_falls_elsewhere():
    noise = fresh()
    noise.update(balance(0, 2, -2))
    assert shifts(noise) == [1, -1, -1]  # |p - q| < 2 is strict
    noise.update(balance(6, 0, 0))
    assert shifts(noise) == [0, 0, 0]
    odd = fresh()
    odd.update(balance(1, -1, 3, samples=5))
    assert shifts(odd) == [1, 1, -1]
    wide = fresh(tolerance=3, step_size=0.02)
    wide.update(balance(2, 4, 0))
    assert shifts(wide) == [2, -2, 2]


def test_a_gain_of_zero_and_an_unscored_one_count_on_neither_side():
    noise = fresh()
    noise.update(scores([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, math.nan, -1]]))
    assert shifts(noise) == [1, -1, 1]


def test_gains_are_those_of_the_weighted_sum_of_the_rewards():
    t = balance(6, 6, 6)
    both = Table({"r": t.values["r"], "s": -t.values["r"]}, t.columns, {"r": 1.0, "s": 1.0})
    noise = fresh()
    noise.update(both)  # they cancel: no gain at all
    assert shifts(noise) == [1, 1, 1]
    noise.update(Table(both.values, both.columns, {"r": 1.0, "s": 3.0}))
    assert shifts(noise) == [0, 0, 0]


def test_a_level_stops_at_the_floor_and_comes_back_from_there():
    noise = fresh(floor=0.05, start=0.05, step_size=0.04)
    for _ in range(9):
        noise.update(balance(6, 6, 6))
    assert noise(SIGMA, step=0, seed=0)[:3].tolist() == pytest.approx([0.05] * 3)
    noise.update(balance(0, 0, 0))
    assert noise(SIGMA, step=0, seed=0)[:3].tolist() == pytest.approx([0.09] * 3)


def test_levels_freeze_when_each_has_turned_often_enough():
    noise = fresh(turns=2)
    up, down = balance(0, 0, 0), balance(6, 6, 6)
    for table, frozen in ((up, False), (up, False), (down, False), (balance(0, 0, 6), False), (up, True)):
        noise.update(table)  # two levels turn back at the fourth, the third only at the fifth
        assert noise.frozen == frozen
    noise.update(down)
    assert shifts(noise) == [3, 3, 1] and noise.state_dict()["rounds"] == 5


def test_levels_freeze_when_the_rounds_run_out():
    noise = fresh(rounds=2)
    for frozen in (False, True, True):
        noise.update(balance(0, 0, 0))
        assert noise.frozen == frozen
    assert shifts(noise) == [2, 2, 2]


def test_the_state_goes_on_where_it_was():
    tables = [balance(0, 2, 0), balance(6, 0, 0), balance(0, 0, 6), balance(0, 4, 0)]
    whole, first, second = fresh(turns=2), fresh(turns=2), fresh(turns=2)
    for table in tables:
        whole.update(table)
    for table in tables[:2]:
        first.update(table)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for table in tables[2:]:
        second.update(table)
    assert second.state_dict() == whole.state_dict() and shifts(second) == shifts(whole)
    assert second.frozen == whole.frozen


def test_all_ranks_calibrate_alike_however_the_rows_lie():
    """The update sees the table of all ranks, sorted: the same numbers in the same order everywhere."""
    t = balance(0, 2, -2)
    one, many = fresh(), fresh()
    one.update(t)
    half = len(t) // 2
    parts = [t.take(torch.arange(half, len(t))), t.take(torch.arange(half))]
    many.update(gather(parts, weights={"r": 1.0}))
    assert many.state_dict() == one.state_dict()


@pytest.mark.parametrize(
    "wrong", [dict(start=0), dict(floor=-1), dict(step_size=0), dict(tolerance=0), dict(turns=0), dict(rounds=0)]
)
def test_settings_that_cannot_calibrate_are_refused(wrong):
    with pytest.raises(ConfigError, match="calibrated: start = .* above 0, and .* at least 1"):
        Calibrated(**wrong)


def test_gains_are_wanted():
    t = balance(0, 0, 0)
    with pytest.raises(ConfigError, match=r"engine.tree=\{kind: clean_images\}"):
        fresh().update(t.take(torch.nonzero(t.columns["action"] >= 0).flatten()))


# ── in a run ──

DENSE = {
    "engine": {
        "steps": 4, "schedule": {"kind": "shifted"}, "kernel": "dance_sde", "noise": {"kind": "calibrated"},
        "tree": {"kind": "clean_images"},
    },
    "advantage": [
        {"kind": "weighted_sum"}, {"kind": "gains"}, {"kind": "group_norm", "key": ["prompt", "action"]}, {"kind": "clamp"},
    ],
    "eval_prompts": None,
    "checkpoints": {"every": 0},
    "samples_every": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"tree": {"kind": "chains"}}, r"calibrated noise needs the gain of every step"),
        (
            {"kernel": "flow_sde"},
            r"belong to the kernel dance_sde, but engine.kernel is flow_sde.*engine.kernel=dance_sde",
        ),
        ({"steps": 1}, "leaves nothing to calibrate"),
    ],
)
def test_a_run_that_cannot_calibrate_is_refused(engine, said, tiny_sd3, tmp_path):
    changes = DENSE | {"engine": DENSE["engine"] | engine}
    with pytest.raises(ConfigError, match=said):
        read(write_config(tmp_path, tiny_sd3, changes)).check()


def test_a_run_logs_the_levels_of_each_rollout_and_freezes_them(tiny_sd3, tmp_path):
    changes = DENSE | {"steps": 4, "engine": DENSE["engine"] | {"noise": {"kind": "calibrated", "rounds": 2}}}
    config = write_config(tmp_path, tiny_sd3, changes)
    train(config)
    levels = [
        [row[f"noise/level_{i:02d}"] for i in range(3)]
        for row in record(tmp_path / "runs/tiny")
        if "noise/level_00" in row
    ]
    assert levels[0] == pytest.approx(BASE, rel=1e-5)
    moved = [[abs(a - b) for a, b in zip(x, y)] for x, y in zip(levels, levels[1:])]
    assert moved[0] == moved[1] == pytest.approx([0.01] * 3, abs=1e-6) and moved[2] == [0, 0, 0]


def test_the_state_is_found_in_the_config_and_stays_out_of_its_file(tiny_sd3, tmp_path):
    path = write_config(tmp_path, tiny_sd3, DENSE)
    config, other = read(path), read(path)
    before = plain(config)
    ((name, part),) = stateful_parts(config)
    assert name == "engine.noise" and part_metrics(config) == {}
    part(SIGMA, step=0, seed=0)
    part.update(balance(0, 2, 2))
    assert plain(config) == before
    load_parts(other, {name: part.state_dict()})
    assert other.engine.noise(SIGMA, step=0, seed=0).equal(part(SIGMA, step=0, seed=0))
    assert part_metrics(other)["noise/level_00"] == pytest.approx(BASE[0] + 0.01)


# ── the command and its file ──


def test_the_command_writes_a_file_that_a_run_reads(tmp_path):
    """`grpo-mm calibrate` on the shipped model with two rounds, then a rehearsed run with the file."""
    out = tmp_path / "noise.json"
    dense = ROOT / "configs/quickstart/dense.yaml"
    small = ["prompts_per_step=2", "group_size=2", "threads=1", "engine.steps=4"]
    work = command_line("calibrate", dense, *small, "--out", out, "--rounds", 2)
    assert in_child(work, tmp_path / "said.txt") == 0
    said = (tmp_path / "said.txt").read_text()
    assert "round 1: " in said and f"{out}: 2 rounds, the rounds ran out while levels still moved" in said
    found = json.loads(out.read_text())
    assert found["kernel"] == "dance_sde" and found["rounds"] == 2 and found["trajectories_per_round"] == 4
    assert found["sigmas"] == pytest.approx(SIGMA.tolist()) and found["levels"][-1] == 0
    drift = [level - base for level, base in zip(found["levels"], BASE)]
    assert all(min(abs(d - k) for k in (-0.02, 0, 0.02)) < 1e-5 for d in drift)
    assert said.splitlines()[-2] == "round 2: " + " ".join(f"{level:.3f}" for level in found["levels"])
    config = read(dense, [*small, f"engine.noise={{kind: noise_file, path: {out}}}", "engine.kernel=dance_sde"])
    config.check()
    assert config.engine.noise(SIGMA, step=0, seed=0).tolist() == pytest.approx(found["levels"])
    assert config.engine.actions() == 3


def test_calibration_needs_neither_the_objective_nor_the_stages_of_the_config(tiny_sd3, tmp_path):
    """A config of another method lends its policy, prompts and rewards."""
    changes = {
        "engine": {"steps": 3, "kernel": "cps", "logprob": "cps", "noise": {"kind": "all", "level": 0.5}},
        "rewards": {"dark": {"use": {"kind": "function", "path": "tiny_rewards:dark"}, "weight": 0}},
        "advantage": [{"kind": "gardo_gate", "against": ["dark"]}, {"kind": "group_norm"}, {"kind": "weighted_sum"}],
        "objective": [
            {"kind": "clipped_ratio", "ratio": "row"}, {"kind": "kl", "form": "mean_shift", "gate": "kl_gate"},
        ],
        "reference_reset": {"every": 5},
        "sampling": {},
    }  # fmt: skip
    config = write_config(tmp_path, tiny_sd3, changes)
    read(config).check()
    seen = []
    found = calibrate(
        config,
        out=tmp_path / "noise.json",
        settings=Calibrated(rounds=2),
        on_round=lambda n, level_S: seen.append(level_S),
    )
    assert found["rounds"] == len(seen) == 2 and not found["frozen"] and found["levels"] == seen[-1].tolist()
    again = calibrate(config, out=tmp_path / "noise.json", settings=Calibrated(rounds=2))
    assert again == found


def test_calibration_stops_where_nothing_can_be_scored(tiny_sd3, tmp_path):
    changes = DENSE | {"rewards": {"bright": {"use": {"path": "tiny_rewards:broken"}}}, "preflight": False}
    with pytest.raises(
        TrainingStopped,
        match=r"(?s)round 1: every one of .* failed to be scored. The first error was:.*ZeroDivisionError",
    ):
        calibrate(write_config(tmp_path, tiny_sd3, changes), out=tmp_path / "noise.json")
    assert not (tmp_path / "noise.json").exists()


def test_calibration_is_for_flow_engines(tiny_sd3, tmp_path):
    changes = {"engine": {"kind": "forward_process"}, "objective": [{"kind": "nft"}]}
    with pytest.raises(ConfigError, match="calibrate works on an engine of kind flow"):
        calibrate(write_config(tmp_path, tiny_sd3, changes), out=tmp_path / "noise.json")


def test_a_file_without_a_folder_is_refused_before_the_first_rollout(tiny_sd3, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written to .*/absent/noise.json.*--out"):
        calibrate(write_config(tmp_path, tiny_sd3, DENSE), out=tmp_path / "absent/noise.json")


GOOD = {"kernel": "dance_sde", "sigmas": SIGMA.tolist(), "levels": [0.5, 0.4, 0.3, 0.0]}
BROKEN = {
    "another kernel": (GOOD | {"kernel": "flow_sde"}, "names the kernel 'flow_sde'; its levels are for dance_sde"),
    "no kernel of ours": (GOOD | {"kernel": "euler"}, "names the kernel 'euler'; its levels are for dance_sde"),
    "other steps": (
        GOOD | {"levels": [0.5, 0.0]},
        "holds 2 noise levels, but the run has 4 .* engine.steps=2, or calibrate",
    ),
    "no levels": ({"kernel": "dance_sde", "sigmas": []}, "must hold `kernel`, `sigmas` and `levels`"),
    "a list": ([1, 2], "must hold `kernel`, `sigmas` and `levels`"),
    "words": (GOOD | {"levels": ["much"] * 4}, "levels must be finite numbers of 0 or more"),
    "NaN": (GOOD | {"levels": [math.nan, 0.1, 0.1, 0]}, "levels must be finite numbers of 0 or more"),
    "infinity": (GOOD | {"levels": [math.inf, 0.1, 0.1, 0]}, "levels must be finite numbers of 0 or more"),
    "a level below zero": (GOOD | {"levels": [-0.1, 0.1, 0.1, 0]}, "levels must be finite numbers of 0 or more"),
    "no noise at all": (GOOD | {"levels": [0, 0, 0, 0]}, "no noisy step that can be trained"),
    "half a file": ('{"kernel": "dan', "is not valid JSON.*grpo-mm calibrate CONFIG --out"),
    "no text": (b"\x80\xff", "is not valid JSON.*grpo-mm calibrate CONFIG --out"),
    "no file": (None, "noise file .*: No such file.*grpo-mm calibrate CONFIG --out"),
}


def with_file(tmp_path, tiny_sd3, content, **engine):
    path = tmp_path / "noise.json"
    if content is not None:
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    changes = DENSE["engine"] | {"noise": {"kind": "noise_file", "path": str(path)}}
    return write_config(tmp_path, tiny_sd3, DENSE | {"engine": changes | engine, "steps": 1})


@pytest.mark.parametrize("problem", BROKEN)
def test_a_file_that_does_not_fit_is_refused_before_a_model_is_loaded(problem, tiny_sd3, tmp_path):
    content, said = BROKEN[problem]
    with pytest.raises(ConfigError, match=said):
        read(with_file(tmp_path, tiny_sd3, content)).check()


def test_levels_of_another_schedule_are_refused_by_the_run(tiny_sd3, tmp_path):
    train(with_file(tmp_path, tiny_sd3, GOOD))
    config = with_file(tmp_path, tiny_sd3, GOOD, schedule={"kind": "shifted", "shift": 2.0})
    with pytest.raises(ConfigError, match=r"calibrated on another schedule: σ_1 is 0.9000 there, 0.8571 in this"):
        train(config, fresh=True)


def test_a_file_survives_a_round_trip_and_whole_numbers_are_levels(tmp_path):
    level_S = torch.tensor([1.0, 2.0, 0.3, 0.0])
    write_noise(tmp_path / "noise.json", sigma_S1=SIGMA, level_S=level_S, about={"config": "x"})
    noise = NoiseFile(str(tmp_path / "noise.json"))
    assert noise(SIGMA, step=0, seed=0).equal(level_S) and noise.trained_steps(4) == 3
    noise.check_schedule(SIGMA)
    (tmp_path / "noise.json").write_text(json.dumps(GOOD | {"levels": [1, 1, 0, 0]}))
    assert noise(SIGMA, step=1, seed=0).equal(level_S), "a file is read once"
    assert NoiseFile("gone.json", noise.content)(SIGMA, step=0, seed=0).equal(level_S), "a run keeps what it held"
    noise = NoiseFile(noise.path)
    assert noise(SIGMA, step=0, seed=0).dtype == torch.float32 and noise.trained_steps(4) == 2
