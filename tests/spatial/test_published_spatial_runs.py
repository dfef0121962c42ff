"""Faithful GRPO over whole runs: its multipliers survive a kill bit for bit, are the same on all ranks, and stay where they should."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chat_server import ChatServer
from children import in_child, launch
from safetensors.torch import load_file
from spatial_settings import config_of, paths_and_sizes
from taught_spatial import verdict
from tiny_runs import record, summary, write_config

from grpo_mm.advantages.state.lagrangian import dual_step
from grpo_mm.config.run_config import read
from grpo_mm.entry import train
from grpo_mm.errors import CheckpointError
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.table import Table
from grpo_mm.training.learner import Learner
from grpo_mm.weights import checkpoint

STEPS = 3
FGRPO = config_of("fgrpo_qwen25vl_7b")
NAMES = ("consistency", "semantic_grounding", "spatial_grounding")
FAST = [f"steps={STEPS}", "threads=1", "samples_every=0", "advantage.0.rate=0.3", "optim.lr=1e-4"]
"""Multipliers and weights move far enough in a few steps to tell runs apart."""
FREE = ["rewards.consistency.use=consistency", "rewards.semantic_grounding.use=semantic_grounding"]
"""No judge."""


@pytest.fixture(scope="module")
def judge_url():
    server = ChatServer(verdict)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield server.url
    server.close()


def overrides(folder: Path, judge_url: str, *more: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [*paths_and_sizes(FGRPO, folder, judge_url=judge_url), *FAST, "checkpoints={every: 1, keep_last: 9}", *more]


def run_of(folder: Path) -> Path:
    return folder / "runs/fgrpo_qwen25vl_7b"


def saved(run: Path, step: int) -> dict[str, dict[str, float]]:
    """The multipliers' state in a checkpoint."""
    return checkpoint.read(run / "checkpoints" / checkpoint.name_of(step)).state["learner"]["parts"]["advantage.0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, judge_url) -> Path:
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    train(FGRPO, overrides(folder, judge_url))
    return run_of(folder)


def test_the_multipliers_of_a_run_are_the_dual_steps_of_its_record(whole):
    rows = [row for row in record(whole) if "loss/total" in row]
    thresholds = {"consistency": 0.95, "semantic_grounding": 0.95, "spatial_grounding": 0.7}
    assert len(rows) == STEPS
    for name, threshold in thresholds.items():
        multiplier, moves = 1.0, 0
        for step, row in enumerate(rows):
            assert row[f"constraint/{name}/multiplier"] == multiplier  # of the step: from before its own batch
            after = saved(whole, step + 1)[name]
            wanted = multiplier
            if after["applicable"] >= 8:
                wanted = dual_step(multiplier, score=after["score"], threshold=threshold, rate=0.3, highest=5.0)
                moves += 1
            assert after["multiplier"] == wanted
            multiplier = wanted
        assert moves > 0 or name != "spatial_grounding"
    assert any(saved(whole, STEPS)[name]["multiplier"] != 1.0 for name in NAMES)


def test_a_run_killed_in_the_middle_ends_with_the_same_multipliers_and_weights(whole, judge_url, tmp_path):
    settings = overrides(tmp_path, judge_url)

    def die_after_step_two():
        train(FGRPO, settings, on_step=lambda step, row: os.kill(os.getpid(), signal.SIGKILL) if step == 2 else None)

    assert in_child(die_after_step_two, tmp_path / "killed.txt") == -signal.SIGKILL
    run = run_of(tmp_path)
    assert not (run / "summary.json").exists() and sorted((run / "checkpoints").glob("step_*"))
    train(FGRPO, settings)
    final = f"checkpoints/{checkpoint.name_of(STEPS)}"
    for name in ("weights", "optimizer"):
        assert (run / final / f"{name}.safetensors").read_bytes() == (
            whole / final / f"{name}.safetensors"
        ).read_bytes()
    for step in range(1, STEPS + 1):
        assert saved(run, step) == saved(whole, step)
    # What was asked before the kill is in the cache, so fewer calls; all else is the same.
    rows, others = ([without_calls(row) for row in record(folder)] for folder in (run, whole))
    assert rows == others and summary(run)["eval_after"] == summary(whole)["eval_after"]


def without_calls(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if not key.startswith("calls/")}


def test_a_checkpoint_of_other_constraints_is_refused(whole, judge_url, tmp_path):
    state = saved(whole, STEPS)
    config = read(FGRPO, overrides(tmp_path, judge_url, "advantage.0.constraints.format={threshold: 0.9}"))
    with pytest.raises(CheckpointError, match="the config constrains"):
        config.advantage[0].load_state_dict(state)


def test_multipliers_are_clipped_at_both_ends_and_a_run_at_the_cap_says_so(judge_url, tmp_path, caplog):
    out_of_reach = [
        "advantage.0.constraints.spatial_grounding.threshold=0.99", "advantage.0.constraints.spatial_grounding.start=4.9",
        "advantage.0.warn_after=2", "steps=3", "advantage.0.rate=2.0", *FREE,
        "advantage.0.constraints.consistency={threshold: 0.0, start: 0.1, when: null}",
    ]  # fmt: skip
    train(FGRPO, overrides(tmp_path, judge_url, *out_of_reach))
    rows = [row for row in record(run_of(tmp_path)) if "loss/total" in row]
    assert [row["constraint/spatial_grounding/multiplier"] for row in rows] == [4.9, 5.0, 5.0]
    assert rows[0]["constraint/consistency/multiplier"] == 0.1
    assert saved(run_of(tmp_path), 3)["consistency"]["multiplier"] in (0.0, 0.1)
    told = [r.getMessage() for r in caplog.records if "may be out of reach" in r.getMessage()]
    assert len(told) == 1 and "'spatial_grounding' has been at its highest multiplier 5 for 2 steps" in told[0]


def test_few_applicable_rows_leave_every_multiplier_of_a_run(judge_url, tmp_path):
    config = read(FGRPO, overrides(tmp_path, judge_url, "advantage.0.least=1000", *FREE))
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    found = [learner.step(step) for step in range(2)]
    for name in NAMES:
        assert [row[f"constraint/{name}/multiplier"] for row in found] == [1.0, 1.0]
    assert found[1]["constraint/spatial_grounding/applicable"] > 8


def test_an_update_that_is_skipped_moves_no_multiplier(judge_url, tmp_path):
    config = read(FGRPO, overrides(tmp_path, judge_url, "updates.count=1", *FREE))
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    parameter = next(iter(learner.policy.trainable.values()))
    spoiling = parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
    assert learner.step(0)["optim/bad_updates"] == 1
    spoiling.remove()
    assert learner.step(1)["constraint/spatial_grounding/multiplier"] == 1.0
    assert learner.step(2)["constraint/spatial_grounding/multiplier"] != 1.0


def made(table: Table) -> Table:
    """Scores that are certain, in place of what a random model earns: half of each group is right, groundings differ."""
    prompt_M, sample_M = table.columns["prompt"], table.columns["sample"]
    grounding_M = ((2 * sample_M + 3 * prompt_M) % 7).double() / 7
    right_M = (sample_M % 2 == 0).double()
    values = {name: grounding_M if name in NAMES else right_M for name in table.values}
    return replace(table, values=values, columns=table.columns | {"failed": torch.zeros(len(table), dtype=torch.bool)})


@pytest.mark.parametrize(("fill", "baseline"), [("zero", "group"), ("masked", "batch"), ("masked", "threshold")])
def test_other_readings_of_the_paper_train_too(fill, baseline, judge_url, tmp_path):
    more = [f"advantage.0.fill={fill}", f"advantage.0.constraints.spatial_grounding.baseline={baseline}"]
    found = []
    for settings in ([], more):
        config = read(FGRPO, overrides(tmp_path, judge_url, *settings))
        learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
        (batch,), _ = learner.rollout(0)
        table = made(learner.table(batch))
        for stage in config.advantage:
            table = stage(table)
        (advantage_M,) = table.values.values()
        kept_M = advantage_M[advantage_M.isfinite()]
        assert float(kept_M.mean()) == pytest.approx(0, abs=1e-6) and float(kept_M.std()) == pytest.approx(1, abs=1e-3)
        found.append(advantage_M)
    assert float((found[0] - found[1]).abs().max()) > 0.01


# ── two processes ──

TRAIN_ALL = """
import json, sys
import torch
from grpo_mm.entry import train
from test_published_spatial_runs import steps

picture, folder, *overrides = sys.argv[1:]
train(picture)
assert torch.distributed.get_world_size() == 2
json.dump(steps(overrides, folder), open(f"{folder}/rank{torch.distributed.get_rank()}.json", "w"))
"""
PICTURES = {
    "steps": 4, "policy": {"dtype": "float64", "micro_batch": 32}, "eval_prompts": None, "checkpoints": {"every": 0}, "samples_every": 0,
    "rewards": {
        "bright": {"use": {"kind": "function", "path": "tiny_rewards:bright"}},
        "dark": {"use": {"kind": "function", "path": "tiny_rewards:dark"}},
    },
    "advantage": [
        {"kind": "lagrangian", "rate": 0.5, "least": 2, "constraints": {"dark": {"threshold": 0.0, "when": "bright"}}},
        {"kind": "group_norm", "key": [], "ddof": 1},
    ],
}  # fmt: skip
"""Of the same stages on pictures in float64, where runs agree to rounding."""


def steps(overrides: list[str], folder: Path | str) -> list[dict]:
    """The multipliers' state after each of two steps."""
    learner = Learner(read(FGRPO, overrides), Processes(device="cpu"), samples=Path(folder))
    found = []
    for step in range(2):
        learner.step(step)
        found.append(learner.checkpoint()[1]["parts"]["advantage.0"])
    return json.loads(json.dumps(found))


def test_two_processes_have_the_same_multipliers_and_train_as_one(judge_url, tiny_sd3, tmp_path):
    settings = overrides(tmp_path, judge_url, *FREE)
    configs = {}
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
        configs[name] = write_config(tmp_path / name, tiny_sd3, PICTURES)
    train(configs["alone"])
    alone = steps(settings, tmp_path)
    script = tmp_path / "train_all.py"
    script.write_text(TRAIN_ALL)
    launch(script, configs["together"], tmp_path, *settings)

    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    for one, two in zip(alone, ranks[0], strict=True):
        assert {name: two[name] for name in NAMES} == {name: pytest.approx(one[name], abs=1e-6) for name in NAMES}
    assert alone[-1]["spatial_grounding"]["multiplier"] > 1

    runs = [configs[name].parent / "runs/tiny" for name in ("alone", "together")]
    weights = [load_file(run / f"checkpoints/{checkpoint.name_of(4)}/weights.safetensors") for run in runs]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-9
    states = [saved(run, 4)["dark"] for run in runs]
    assert states[0] == pytest.approx(states[1], abs=1e-9) and states[0]["multiplier"] > 1
