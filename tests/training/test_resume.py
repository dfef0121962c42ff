"""A run that is killed anywhere and started again leaves what an undisturbed one leaves, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_rewards
import torch
from children import command_line, in_child
from safetensors.torch import load_file
from tiny_runs import PYTHONPATH, ROOT, record, summary, weights, write_config

from grpo_mm.config.recorded import is_own
from grpo_mm.entry import train
from grpo_mm.errors import CheckpointError, ConfigError, TrainingStopped
from grpo_mm.run import product, run_folder
from grpo_mm.training import ending, learner, trainer
from grpo_mm.weights import checkpoint

STEPS = 3


@pytest.fixture(scope="module")
def whole(tiny_sd3, tmp_path_factory):
    """A run that nobody disturbs, evaluated on the way; the folder it lies in is copied, never changed."""
    folder = tmp_path_factory.mktemp("whole")
    train(write_config(folder, tiny_sd3, {"ema": {"every_updates": 1}, "evaluation": {"every": 2}}))
    return folder / "runs/tiny"


@pytest.fixture
def config(tiny_sd3, tmp_path) -> Path:
    return write_config(tmp_path, tiny_sd3, {"ema": {"every_updates": 1}, "evaluation": {"every": 2}})


def assert_same(run: Path, whole: Path) -> None:
    assert record(run) == record(whole)
    for name in ("weights", "optimizer", "snapshots"):
        of = [(folder / f"checkpoints/step_{STEPS:06d}/{name}.safetensors").read_bytes() for folder in (run, whole)]
        assert of[0] == of[1], name
    products = [load_file(folder / "adapter/pytorch_lora_weights.safetensors") for folder in (run, whole)]
    assert products[0].keys() == products[1].keys()
    assert all(torch.equal(products[0][name], products[1][name]) for name in products[0])
    untimed = [{k: v for k, v in summary(f).items() if k != "seconds"} for f in (run, whole)]
    assert untimed[0] == untimed[1]
    assert sorted(p.name for p in run.rglob("*")) == sorted(p.name for p in whole.rglob("*"))
    pictures = [{p.name: p.read_bytes() for p in (folder / "samples").iterdir()} for folder in (run, whole)]
    assert pictures[0] == pictures[1]


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, function, *, before: bool = True, then=die):
    """`function`, but its `number`th call runs `then` before (or after) its work."""
    calls = [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number and before:
            then(*args, **kwargs)
        result = function(*args, **kwargs)
        if calls[0] == number and not before:
            then(*args, **kwargs)
        return result

    return wrapped


def torn_row(path, row):
    with path.open("a") as file:
        file.write(json.dumps(row)[:50])
    die()


def torn_state(path):
    path.write_bytes(path.read_bytes()[:100])
    die()


def half_deleted(folder, keep):
    (folder / "step_000001/state.json").unlink()
    die()


# Where the process dies: an object, the name of its function, and its replacement.
MOMENTS = {
    "making the folder": (run_folder, "replace_text", at_call(1, run_folder.replace_text)),
    "with a config and nothing else": (run_folder, "replace_text", at_call(2, run_folder.replace_text)),
    "evaluating before training": (tiny_rewards, "bright", at_call(2, tiny_rewards.bright)),
    "rollout of step 3": (tiny_rewards, "bright", at_call(6, tiny_rewards.bright)),
    "between the updates of step 2": (learner.Learner, "_average", at_call(4, learner.Learner._average)),
    "writing a row": (trainer.metrics, "append", at_call(3, trainer.metrics.append, then=torn_row)),
    "between row and checkpoint": (trainer.metrics, "append", at_call(3, trainer.metrics.append, before=False)),
    "writing the first checkpoint": (checkpoint, "_sha256", at_call(1, checkpoint._sha256)),
    "writing the last checkpoint": (checkpoint, "_sync", at_call(9, checkpoint._sync, then=torn_state)),
    "deleting an old checkpoint": (checkpoint, "prune", at_call(4, checkpoint.prune, then=half_deleted)),
    "evaluating after training": (tiny_rewards, "bright", at_call(7, tiny_rewards.bright)),
    "writing the model card": (product, "write_model_card", at_call(1, product.write_model_card)),
    "writing the summary": (ending, "replace_text", at_call(1, ending.replace_text)),
}


LATER = ("making the folder", "evaluating before training", "between the updates of step 2", "writing the first checkpoint",
         "evaluating after training", "writing the model card")  # fmt: skip
"""Moments that are much like others; the slow tests also die at every touch of a file."""


@pytest.mark.parametrize("moment", [pytest.param(m, marks=pytest.mark.slow if m in LATER else ()) for m in MOMENTS])
def test_a_killed_run_goes_on_bit_for_bit(moment, config, whole, tmp_path):
    code = in_child(command_line("train", config), tmp_path / "killed.txt", patches=[MOMENTS[moment]])
    assert code == -signal.SIGKILL
    run = tmp_path / "runs/tiny"
    assert not (run / "summary.json").exists()
    train(config)
    assert_same(run, whole)


def threads_of_parent() -> None:
    status = Path(f"/proc/{os.getppid()}/status").read_text()
    print(next(line for line in status.splitlines() if line.startswith("Threads:")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_what_is_forked_has_no_thread_that_could_hold_a_lock(tmp_path):
    assert in_child(threads_of_parent, tmp_path / "said.txt") == 0
    assert (tmp_path / "said.txt").read_text().split() == ["Threads:", "1"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_killed_at_any_touch_of_a_file_goes_on_bit_for_bit(tiny_sd3, whole, tmp_path):
    """Every open, rename and removal below the run folder in turn is the last thing the process does, and somewhat
    later the last thing of the process that goes on."""

    def killed_at_touch(folder: Path, number: int):
        touches = [0]

        def hook(event: str, arguments: tuple) -> None:
            is_here = str(folder / "runs") in str(arguments[:1])
            if (
                event in ("os.remove", "os.rmdir")
                or event in ("open", "os.rename", "os.mkdir", "shutil.rmtree")
                and is_here
            ):
                touches[0] += 1
                if touches[0] == number:
                    die()

        def work() -> None:
            sys.addaudithook(hook)
            train(folder / "run.yaml")

        return work

    number, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        config = write_config(folder, tiny_sd3, {"ema": {"every_updates": 1}, "evaluation": {"every": 2}})
        code = in_child(killed_at_touch(folder, number), folder / "killed.txt")
        if code == -signal.SIGKILL:
            in_child(killed_at_touch(folder, 1 + number // 3), folder / "again.txt")
            train(config)
            assert_same(folder / "runs/tiny", whole)
        shutil.rmtree(folder)
    assert code == 0 and number > 50


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_command_killed_at_random_times_ends_like_one_that_is_not(tiny_sd3, tmp_path):
    """`kill -9` from outside, again and again, on the real command."""
    changes = {"steps": 60, "checkpoints": {"every": 7}, "evaluation": {"every": 20}}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    runs, rng, kills = {}, random.Random(0), 0
    for name in ("killed", "left alone"):
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name, tiny_sd3, changes)
        command = [sys.executable, "-m", "grpo_mm.cli", "train", str(config)]
        runs[name] = run = tmp_path / name / "runs/tiny"
        while not (run / "summary.json").exists():
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
            if name == "killed":
                started = touched(run / "metrics.jsonl")
                while process.poll() is None and touched(run / "metrics.jsonl") == started:
                    time.sleep(0.05)
                time.sleep(rng.uniform(0, 3))
                kills += process.poll() is None
                process.kill()
            assert process.wait() in (0, -signal.SIGKILL)
    assert kills > 1
    assert record(runs["killed"]) == record(runs["left alone"])
    assert weights(runs["killed"], 60) == weights(runs["left alone"], 60)


def touched(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def test_sigterm_saves_leaves_and_the_same_command_goes_on(config, whole, tmp_path):
    train_until_signal(signal.SIGTERM, config, tmp_path, code=143)
    run = tmp_path / "runs/tiny"
    assert checkpoint.steps(run / "checkpoints") == [2] and not (run / "summary.json").exists()
    assert "saved at step 2; the same command goes on from there" in (tmp_path / "stopped.txt").read_text()
    train(config)
    assert_same(run, whole)


def test_ctrl_c_leaves_a_run_that_goes_on_and_no_traceback(config, whole, tmp_path):
    train_until_signal(signal.SIGINT, config, tmp_path, code=130)
    said = (tmp_path / "stopped.txt").read_text()
    assert "Traceback" not in said and "once more stops at once" in said and "the same command goes on" in said
    train(config)
    assert_same(tmp_path / "runs/tiny", whole)


def test_a_second_ctrl_c_stops_at_once(config, whole, tmp_path):
    train_until_signal(signal.SIGINT, config, tmp_path, code=130, times=2)
    assert checkpoint.steps(tmp_path / "runs/tiny/checkpoints") == [1]
    assert "Traceback" not in (tmp_path / "stopped.txt").read_text()
    train(config)
    assert_same(tmp_path / "runs/tiny", whole)


def train_until_signal(number: int, config: Path, folder: Path, *, code: int, times: int = 1) -> None:
    """The signal comes while step 2 is rolled out; the config saves every step, so the one of step 1 is there."""

    def send(*_args):
        for _ in range(times):
            os.kill(os.getpid(), number)

    patches = [
        (tiny_rewards, "bright", at_call(4, tiny_rewards.bright, then=send)),
        (checkpoint, "prune", lambda folder, keep: None),
    ]
    assert in_child(command_line("train", config), folder / "stopped.txt", patches=patches) == code
    if times == 1:
        shutil.rmtree(folder / "runs/tiny/checkpoints/step_000001")


@pytest.fixture
def run(config, whole, tmp_path) -> Path:
    """A finished run of its own."""
    shutil.copytree(whole, tmp_path / "runs/tiny")
    plain = (tmp_path / "runs/tiny/config.yaml").read_text().replace(str(whole.parents[1]), str(tmp_path))
    (tmp_path / "runs/tiny/config.yaml").write_text(plain)
    return tmp_path / "runs/tiny"


def test_a_finished_run_is_not_trained_again(config, run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    found = train(config)
    assert found.items() >= summary(run).items() and found["differs"] == []
    assert (
        f"{run}: finished on 20" in found["nothing_was_run"]
        and "after 3 steps, nothing was run." in found["nothing_was_run"]
    )
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_another_config_in_the_same_folder_is_refused_with_the_keys_that_differ(config, run, tmp_path):
    before = record(run)
    with pytest.raises(ConfigError, match=r"seed: 0 there, 3 here; optim.lr: 0.001 there, 0.5 here.*--fresh"):
        train(config, ["optim.lr=0.5", "seed=3"], accept=True)
    assert in_child(command_line("train", config, "policy.lora.rank=9", "--accept"), tmp_path / "out.txt") == 2
    assert (tmp_path / "out.txt").read_text().startswith("ConfigError: ") and record(run) == before


def test_fresh_starts_over_with_any_config_and_moves_the_old_run_aside(config, whole, tmp_path):
    train(config)
    run = tmp_path / "runs/tiny"
    train(config, ["steps=1", "optim.lr=0.01"], fresh=True)
    assert [row["step"] for row in record(run)] == [0, 1, 1]
    assert checkpoint.steps(run / "checkpoints") == [1]
    assert sorted(p.name for p in run.parent.iterdir()) == [".lock_tiny", "tiny", "tiny.1"]
    assert_same(run.with_name("tiny.1"), whole)
    assert is_own(run.with_name("tiny.1"))
    train(config, ["steps=1"], fresh=True)
    assert (run.with_name("tiny.2") / "summary.json").is_file()
    assert_same(run.with_name("tiny.1"), whole)


@pytest.mark.parametrize("died", ["with a config and nothing else", "writing a row"])
def test_a_run_without_a_checkpoint_gives_way_to_another_config(died, config, tmp_path):
    never = ["checkpoints.every=0", "evaluation.every=0", "evaluation.patience=null"]
    assert in_child(command_line("train", config, *never), tmp_path / "killed.txt", patches=[MOMENTS[died]]) < 0
    folder = tmp_path / "runs/tiny"
    (folder / "notes.txt").write_text("mine")
    assert (folder / "metrics.jsonl").exists() == (died == "writing a row")
    train(config, ["steps=1", "seed=4"])
    assert summary(folder)["steps"] == 1 and [row["step"] for row in record(folder)] == [0, 1, 1]
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in folder.parent.iterdir()) == [".lock_tiny", "tiny"]


def test_a_named_checkpoint_goes_back(config, run, whole):
    train(config, checkpoint="step_000002")
    assert_same(run, whole)
    with pytest.raises(CheckpointError, match=r"no checkpoint 'step_000001'; there are: step_000002, step_000003"):
        train(config, checkpoint="step_000001")
    with pytest.raises(ConfigError, match="--fresh starts over without any checkpoint"):
        train(config, checkpoint="step_000002", fresh=True)
    assert_same(run, whole)


def test_a_truncated_checkpoint_is_refused_by_name_and_never_passed_over(config, run, whole, monkeypatch):
    (run / "summary.json").unlink()
    broken = run / "checkpoints/step_000003/weights.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    monkeypatch.setattr(trainer, "Trainer", None)  # it is found before a model is loaded
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"step_000003/weights.safetensors is .*truncated.*--checkpoint step_000002"
        ):
            train(config)
    monkeypatch.undo()
    train(config, checkpoint="step_000002")
    assert_same(run, whole)


def test_a_foreign_checkpoint_is_refused_by_name(config, run, tiny_sd3, tmp_path):
    (run / "summary.json").unlink()
    (tmp_path / "other").mkdir()
    train(write_config(tmp_path / "other", tiny_sd3, {"steps": 1, "policy": {"lora": {"rank": 3}}}))
    shutil.copytree(tmp_path / "other/runs/tiny/checkpoints/step_000001", run / "checkpoints/step_000004")
    with pytest.raises(CheckpointError, match=r"step_000004 is a checkpoint of step 1 by its manifest"):
        train(config)
    shutil.rmtree(run / "checkpoints/step_000004")
    (run / "checkpoints/step_000004").mkdir()
    with pytest.raises(
        CheckpointError, match=r"step_000004 is not a checkpoint of this program.*--checkpoint step_000003"
    ):
        train(config)


def test_two_processes_are_never_in_one_run(config, whole, tmp_path, monkeypatch):
    def start_another(*_args):
        monkeypatch.undo()
        assert in_child(command_line("train", config, "--fresh"), tmp_path / "other.txt") == 2

    with monkeypatch.context() as patch:
        patch.setattr(tiny_rewards, "bright", at_call(4, tiny_rewards.bright, then=start_another))
        train(config)
    assert f"process {os.getpid()} is training in {tmp_path / 'runs/tiny'}" in (tmp_path / "other.txt").read_text()
    assert_same(tmp_path / "runs/tiny", whole)


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_with_a_sentence_and_leaves_the_last_checkpoint(config, whole, tmp_path):
    full = (checkpoint, "save_file", at_call(5, checkpoint.save_file, then=no_space))
    assert in_child(command_line("train", config), tmp_path / "full.txt", patches=[full]) == 3
    said = (tmp_path / "full.txt").read_text()
    assert "Traceback" not in said
    assert "step_000002 could not be written: there is no space left on the device. " in said
    assert "The last checkpoint, step_000001, is intact. Free some space and give the same command again" in said
    run = tmp_path / "runs/tiny"
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_000001"]
    train(config)
    assert_same(run, whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_wherever_it_shows(config, whole, tmp_path, monkeypatch):
    """The record is a link to a device that is always full."""
    run = tmp_path / "runs/tiny"

    def fill(*_args):
        (run / "metrics.jsonl").rename(run / "kept")
        (run / "metrics.jsonl").symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        patch.setattr(tiny_rewards, "bright", at_call(4, tiny_rewards.bright, then=fill))
        with pytest.raises(TrainingStopped, match=r"could not be written: there is no space.*step_000001, is"):
            train(config)
    (run / "kept").replace(run / "metrics.jsonl")
    train(config)
    assert_same(run, whole)
