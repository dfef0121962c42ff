"""Rewards that fail and losses that are no number: counted, logged, left out, and never in the weights."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tiny_rewards
import torch
from children import command_line, in_child
from tiny_runs import PROMPTS, record, summary, weights, write_config

from grpo_mm.config.run_config import Scorer
from grpo_mm.entry import train
from grpo_mm.errors import TrainingStopped
from grpo_mm.objectives import ClippedRatio
from grpo_mm.weights import checkpoint

NAN = float("nan")
FEW = {"steps": 2, "eval_prompts": None, "samples_every": 0, "checkpoints": {"every": 1}}


def raises_for_dark(images, prompts, metadata):
    """A batch with a dark picture cannot be scored; asked one by one, the dark ones cannot."""
    scores = tiny_rewards.bright(images, prompts, metadata)
    if min(scores) < 0.535:
        raise RuntimeError("too dark to judge")
    return scores


def nan_for_dark(images, prompts, metadata):
    return [s if s >= 0.535 else NAN for s in tiny_rewards.bright(images, prompts, metadata)]


@pytest.mark.parametrize("reward", [raises_for_dark, nan_for_dark])
def test_rows_that_fail_are_counted_and_left_out(reward, tiny_sd3, tmp_path, caplog):
    seen = []

    def noting(images, prompts, metadata):
        seen.append(tiny_rewards.bright(images, prompts, metadata)) if len(images) > 2 else None
        return reward(images, prompts, metadata)

    train(write_config(tmp_path, tiny_sd3, FEW), rewards={"bright": noting})
    rows = record(tmp_path / "runs/tiny")
    for row, scores in zip(rows, seen, strict=True):
        good = [s for s in scores if s >= 0.535]
        assert 0 < len(good) < len(scores) == 8
        share = 1 - len(good) / len(scores)
        assert row["reward/bright/mean"] == pytest.approx(sum(good) / len(good))  # no zero for what failed
        assert (
            row["reward/failed_frac"] == row["reward/bright/unscored_frac"] == row["advantage/left_out_frac"] == share
        )
        assert row["calls/train_calls"] == 2 * len(good) and row["optim/bad_updates"] == 0
    told = [r.message for r in caplog.records if "'bright' failed" in r.message]
    assert len(told) == (reward is raises_for_dark)
    assert not told or "too dark to judge" in told[0]


def test_what_failed_does_not_reach_the_gradient(tiny_sd3, tmp_path):
    """Rows that cannot be scored are as good as rows of another score: the others decide alone."""
    left = []
    for name, filler in (("nan", NAN), ("error", None)):

        def reward(images, prompts, metadata, filler=filler):
            scores = tiny_rewards.bright(images, prompts, metadata)
            if filler is None and min(scores) < 0.535:
                raise RuntimeError("no")
            return [s if s >= 0.535 else filler for s in scores]

        train(write_config(tmp_path, tiny_sd3, FEW | {"name": name}), rewards={"bright": reward})
        left.append(weights(tmp_path / "runs" / name, 2))
    assert left[0] == left[1]


def test_a_reward_that_hangs_is_left_behind(tiny_sd3, tmp_path):
    """Half of the prompts have a reward that hangs in the first step; the other half is trained."""
    (tmp_path / "more.txt").write_text("\n".join(PROMPTS))
    calls = []

    def hangs_once(images, prompts, metadata):
        calls.append(len(images))
        time.sleep(30 if len(images) > 2 and max(calls[:-1], default=0) <= 2 else 0)
        return tiny_rewards.bright(images, prompts, metadata)

    sources = {"more": {"use": {"kind": "file", "path": str(tmp_path / "more.txt")}}}
    rewards = {
        "bright": Scorer(use=tiny_rewards.bright, sources=("lines",)),
        "slow": Scorer(use=hangs_once, sources=("more",), timeout_seconds=0.3),
    }
    began = time.monotonic()
    train(write_config(tmp_path, tiny_sd3, FEW | {"prompts": sources}), rewards=rewards)
    assert time.monotonic() - began < 25 and calls == [2, 4, 4]
    rows = record(tmp_path / "runs/tiny")
    assert [row["reward/failed_frac"] for row in rows] == [0.5, 0] == [row["advantage/left_out_frac"] for row in rows]
    assert rows[0]["reward/slow/mean"] is None and rows[0]["reward/slow/unscored_frac"] == 1
    assert [row["calls/train_calls"] for row in rows] == [9, 16]  # an update without rows takes an empty forward
    config = write_config(tmp_path, tiny_sd3, FEW | {"name": "alone"})
    calls.clear()
    with pytest.raises(TrainingStopped, match="no answer for 8 outputs within 0.3 seconds"):
        train(config, rewards={"slow": Scorer(use=hangs_once, timeout_seconds=0.3)})
    train(config, rewards={"slow": Scorer(use=hangs_once, timeout_seconds=0.3)})  # the same command, and now it answers
    assert summary(tmp_path / "runs/alone")["steps"] == 2


def test_a_run_in_which_nothing_can_be_scored_stops_with_the_first_error(tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, FEW | {"rewards": {"bright": {"use": "tiny_rewards:broken"}}})
    assert in_child(command_line("train", config), tmp_path / "out.txt") == 2
    said = (tmp_path / "out.txt").read_text()
    assert "ConfigError: rewards.bright cannot score" in said and "ZeroDivisionError: division by zero" in said
    assert in_child(command_line("train", config, "preflight=false"), tmp_path / "out.txt") == 3
    said = (tmp_path / "out.txt").read_text()
    assert "TrainingStopped: step 1: every one of 8 rows failed to be scored. The first error was:" in said
    assert 'tiny_rewards.py", line' in said and "ZeroDivisionError: division by zero" in said
    assert checkpoint.steps(tmp_path / "runs/tiny/checkpoints") == []
    with pytest.raises(
        TrainingStopped, match="the reward gave NaN or None for every row"
    ):  # a run without a step gives way
        train(config, rewards={"bright": lambda images, prompts, metadata: [NAN] * len(images)})


def test_a_whole_part_of_the_batch_that_failed_does_not_end_the_run(tiny_sd3, tmp_path):
    """One group of the two is never scored: its update has nothing to train."""

    def first_only(images, prompts, metadata):
        scores = tiny_rewards.bright(images, prompts, metadata)
        return [s if p == prompts[0] else NAN for s, p in zip(scores, prompts)]

    train(write_config(tmp_path, tiny_sd3, FEW), rewards={"bright": first_only})
    for row in record(tmp_path / "runs/tiny"):
        assert row["reward/failed_frac"] == 0.5 and row["optim/bad_updates"] == 0 and row["loss/total"] is not None


def test_a_failed_evaluation_is_no_score(tiny_sd3, tmp_path):
    def only_in_training(images, prompts, metadata):
        return [NAN] * 2 if len(images) == 2 else tiny_rewards.bright(images, prompts, metadata)

    found = train(
        write_config(tmp_path, tiny_sd3, {"steps": 2, "evaluation": {"every": 1}}), rewards={"bright": only_in_training}
    )
    assert found["eval_after"]["score"] is None and found["best_step"] is None
    assert summary(tmp_path / "runs/tiny") == found
    assert "| score | – | – |" in (tmp_path / "runs/tiny/adapter/README.md").read_text()


@pytest.fixture
def spoiled(monkeypatch):
    """Makes the loss of chosen updates NaN, or only its gradient."""

    def choose(updates, *, only_gradient: bool = False) -> None:
        calls = [0]
        original = ClippedRatio.__call__

        def spoil(self, values, view):
            calls[0] += 1
            if calls[0] not in updates:
                return original(self, values, view)
            if only_gradient:
                values["logprobs"].register_hook(lambda gradient: gradient * NAN)
                return original(self, values, view)
            return original(self, {**values, "logprobs": values["logprobs"] * NAN}, view)

        monkeypatch.setattr(ClippedRatio, "__call__", spoil)

    return choose


@pytest.mark.parametrize("only_gradient", [False, True])
def test_an_update_that_is_no_number_is_skipped_and_counted(only_gradient, spoiled, tiny_sd3, tmp_path, caplog):
    spoiled({2, 3}, only_gradient=only_gradient)  # of 6: the last one of step 1, the first one of step 2
    settings = {
        "ema": {"every_updates": 1},
        "policy": {"micro_batch": 64},
        "eval_prompts": None,
        "checkpoints": {"keep_last": 9},
    }
    found = train(write_config(tmp_path, tiny_sd3, settings))
    assert found["bad_updates"] == 2
    run = tmp_path / "runs/tiny"
    assert [row["optim/bad_updates"] for row in record(run)] == [1, 2, 2]
    for step in (1, 2, 3):
        saved = checkpoint.read(run / "checkpoints" / checkpoint.name_of(step))
        assert all(bool(torch.isfinite(t).all()) for tensors in saved.tensors.values() for t in tensors.values())
        assert saved.state["learner"]["counters"]["updates"] == (1, 2, 4)[step - 1]
    what = "gradient" if only_gradient else "loss"
    assert [r.message for r in caplog.records].count(f"a non-finite {what}: this update is skipped") == 2


def test_too_many_of_them_in_a_row_stop_the_run(spoiled, tiny_sd3, tmp_path):
    spoiled(range(3, 99))
    settings = {"steps": 9, "policy": {"micro_batch": 64}, "optim": {"max_bad_updates": 3}, "eval_prompts": None}
    config = write_config(tmp_path, tiny_sd3, settings)
    with pytest.raises(
        TrainingStopped, match="3 updates in a row had a non-finite loss or gradient.*weights are those before"
    ):
        train(config)
    saved = checkpoint.read(tmp_path / "runs/tiny/checkpoints/step_000002")
    assert all(bool(torch.isfinite(t).all()) for t in saved.tensors["weights"].values())
    assert saved.state["learner"]["counters"]["bad_in_a_row"] == 2


def test_an_exploding_gradient_is_clipped_and_an_overflowing_one_is_skipped(tiny_sd3, tmp_path):
    """Weights are finite whatever the loss is multiplied with."""
    for weight, bad in ((1e15, False), (1e39, True)):
        settings = {
            "steps": 1, "name": f"w{weight:g}", "updates": {"count": 1}, "eval_prompts": None,
            "optim": {"max_bad_updates": 9}, "objective": [{"kind": "clipped_ratio", "weight": weight}],
        }  # fmt: skip
        found = train(write_config(tmp_path, tiny_sd3, settings))
        assert found["bad_updates"] == int(bad)
        saved = checkpoint.read(Path(tmp_path / "runs" / settings["name"] / "checkpoints/step_000001"))
        assert all(bool(torch.isfinite(t).all()) for tensors in saved.tensors.values() for t in tensors.values())
