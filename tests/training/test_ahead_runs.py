"""Runs that draw ahead: killed anywhere they go on bit for bit, with pictures and with texts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import tiny_rewards
from children import command_line, in_child
from conftest import ROOT
from safetensors.torch import load_file
from test_resume import at_call
from tiny_runs import record, summary, weights, write_config

from grpo_mm.entry import train
from grpo_mm.training import ahead, learner, trainer

AHEAD = {"rollout_ahead": 1, "ema": {"every_updates": 1}, "evaluation": {"every": 2}}


@pytest.fixture(scope="module")
def whole(tiny_sd3, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(write_config(folder, tiny_sd3, AHEAD))
    return folder / "runs/tiny"


MOMENTS = {
    "between the updates of step 2": (learner.Learner, "_average", at_call(4, learner.Learner._average)),
    "as step 2 begins to be drawn": (ahead.Ahead, "_keep", at_call(1, ahead.Ahead._keep)),
    "scoring step 3 ahead": (tiny_rewards, "bright", at_call(4, tiny_rewards.bright)),
    "between row and checkpoint": (trainer.metrics, "append", at_call(3, trainer.metrics.append, before=False)),
}
QUICK = "between the updates of step 2"


def assert_same(run: Path, whole: Path, step: int) -> None:
    assert record(run) == record(whole) and weights(run, step) == weights(whole, step)
    for name in ("optimizer", "snapshots"):
        found, wanted = (load_file(f / f"checkpoints/step_{step:06d}/{name}.safetensors") for f in (run, whole))
        assert found.keys() == wanted.keys() and all((found[k] == wanted[k]).all() for k in found)
    assert any(name.startswith("ahead/") for name in wanted)
    assert summary(run)["eval_after"] == summary(whole)["eval_after"]


@pytest.mark.parametrize("moment", [m if m == QUICK else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS])
def test_a_killed_run_that_draws_ahead_goes_on_bit_for_bit(moment, tiny_sd3, whole, tmp_path):
    config = write_config(tmp_path, tiny_sd3, AHEAD)
    code = in_child(command_line("train", config), tmp_path / "killed.txt", patches=[MOMENTS[moment]])
    assert code == -signal.SIGKILL
    train(config)
    assert_same(tmp_path / "runs/tiny", whole, 3)


def test_what_was_drawn_ahead_is_told(whole):
    rows = [row for row in record(whole) if "loss/total" in row]
    assert [row["rollout/staleness"] for row in rows] == [0, 2, 2]
    assert rows[0]["policy/logprob_gap"] < 1e-3 < rows[1]["policy/logprob_gap"]


class Gone(Exception):
    pass


def test_texts_that_lay_ready_are_drawn_again(tmp_path):
    """With the media of their prompts, which are read ahead."""
    runs = []
    for name, dies in (("whole", None), ("gone", 3)):
        settings = [
            "steps=4", f"name={name}", f"runs_dir={tmp_path}", "rollout_ahead=1", "prompts_per_step=2", "group_size=4", "samples_every=0",
            "checkpoints.every=1", "prompts.clips.use.count=16", "eval_prompts.clips.use.count=2", "optim.warmup_updates=0",
        ]  # fmt: skip

        def on_step(step: int, row: dict[str, float], dies: int | None = dies) -> None:
            if step == dies:
                raise Gone

        if dies:
            with pytest.raises(Gone):
                train(ROOT / "configs/quickstart/video.yaml", settings, on_step=on_step)
        train(ROOT / "configs/quickstart/video.yaml", settings)
        runs.append(tmp_path / name)
    assert_same(runs[1], runs[0], 4)
    assert [row["rollout/staleness"] for row in record(runs[0]) if "loss/total" in row] == [0, 1, 1, 1]
