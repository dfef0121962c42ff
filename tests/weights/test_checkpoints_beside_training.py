"""Checkpoints that are written while training goes on: the same files, whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import pytest
from children import in_child
from tiny_runs import write_config

from grpo_mm.config.run_config import read
from grpo_mm.entry import train
from grpo_mm.errors import TrainingStopped
from grpo_mm.ledger.entries import Spread
from grpo_mm.training.forecast import ledger_of, plan_of
from grpo_mm.weights import background, checkpoint

BESIDE = {"checkpoints": {"every": 1, "keep_last": 2, "in_background": True}}


def tensors(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted((run / "checkpoints").rglob("*.safetensors"))}


def steps(config: Path) -> list[int]:
    return checkpoint.steps(config.parent / "runs/tiny/checkpoints")


@pytest.fixture
def held(monkeypatch) -> dict[str, threading.Event]:
    """The first checkpoint that is written waits for `go`; `begun` says that it has come there."""
    events, there = {"begun": threading.Event(), "go": threading.Event()}, checkpoint._end

    def end(aside, final, *rest, **named):
        if final.name == "step_000001":
            events["begun"].set()
            assert events["go"].wait(60)
        return there(aside, final, *rest, **named)

    monkeypatch.setattr(checkpoint, "_end", end)
    return events


def test_the_files_are_those_that_are_written_at_once(tiny_sd3, tmp_path):
    found = {}
    for name, changes in (("beside", BESIDE), ("at once", {"checkpoints": {"every": 1, "keep_last": 2}})):
        (tmp_path / name).mkdir()
        train(write_config(tmp_path / name, tiny_sd3, changes))
        run = tmp_path / name / "runs/tiny"
        found[name] = tensors(run) | {"list": (run / "checkpoints.jsonl").read_bytes()}
        for step in checkpoint.steps(run / "checkpoints"):
            checkpoint.read(run / "checkpoints" / checkpoint.name_of(step))
        assert not list((run / "checkpoints").glob(".writing*"))
    assert found["beside"] == found["at once"] and len(found["beside"]) > 3


def test_training_goes_on_meanwhile_and_the_copy_does_not(held, tiny_sd3, tmp_path):
    config, seen = write_config(tmp_path, tiny_sd3, BESIDE), []

    def on_step(step, row):
        if step == 2:  # a whole step after the first checkpoint was begun
            assert held["begun"].wait(60) and steps(config) == []
            seen.append(step)
            held["go"].set()

    train(config, on_step=on_step)
    assert seen == [2] and steps(config)[-1] == 3
    other = write_config(
        tmp_path, tiny_sd3, {"name": "other", "checkpoints": {"every": 1, "keep_last": 5}}, file="o.yaml"
    )
    train(other)
    first = "checkpoints/step_000002/weights.safetensors"
    assert (tmp_path / "runs/tiny" / first).read_bytes() == (tmp_path / "runs/other" / first).read_bytes()


def test_what_goes_wrong_stops_the_run_at_the_next_step_with_the_same_sentence(monkeypatch, tiny_sd3, tmp_path):
    there, done = checkpoint.save_file, []

    def save_file(held, path, **more):
        if "step_000002" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return there(held, path, **more)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    config = write_config(tmp_path, tiny_sd3, BESIDE | {"steps": 9})
    with pytest.raises(
        TrainingStopped, match="no space left on the device. The last checkpoint, step_000001, is intact"
    ):
        train(config, on_step=lambda step, row: done.append(step))
    assert steps(config) == [1] and 2 <= done[-1] <= 4
    monkeypatch.undo()
    assert train(config)["steps"] == 9


def test_a_stop_signal_and_an_error_wait_for_it(held, tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, BESIDE)

    def on_step(step, row):
        if step == 2:
            threading.Timer(0.3, held["go"].set).start()
            raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        train(config, on_step=on_step)
    assert held["go"].is_set() and steps(config) == [1]
    (tmp_path / "again").mkdir()
    again = write_config(tmp_path / "again", tiny_sd3, BESIDE | {"steps": 50})
    with pytest.raises(KeyboardInterrupt):
        train(again, on_step=lambda step, row: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
    assert steps(again)[-1] == 2 and not list((tmp_path / "again/runs/tiny/checkpoints").glob(".writing*"))


def test_where_main_memory_is_short_it_is_written_at_once_and_told(monkeypatch, caplog, tiny_sd3, tmp_path):
    from grpo_mm.run import kept

    monkeypatch.setattr(kept, "free_memory", lambda: 1000)
    monkeypatch.setattr(kept, "copied", None)
    train(write_config(tmp_path, tiny_sd3, BESIDE))
    assert caplog.text.count("they are written at once") == 1 and steps(tmp_path / "run.yaml") == [2, 3]
    assert background.free_memory() is None or background.free_memory() > 2**20


def _killed_while_it_writes(config: Path) -> None:
    there = checkpoint._hashes

    def hashes(files):
        found = there(files)
        if threading.current_thread() is not threading.main_thread() and any("000002" in str(p) for p in files):
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    checkpoint._hashes = hashes
    train(config)


@pytest.mark.slow
def test_killed_while_it_is_written_the_one_before_is_there(tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, BESIDE | {"steps": 4})
    assert in_child(lambda: _killed_while_it_writes(config), tmp_path / "said.txt") == -signal.SIGKILL
    assert steps(config) == [1]
    assert train(config)["steps"] == 4
    whole = write_config(tmp_path, tiny_sd3, {"name": "whole", "steps": 4}, file="whole.yaml")
    train(whole)
    last = "checkpoints/step_000004/weights.safetensors"
    assert (tmp_path / "runs/tiny" / last).read_bytes() == (tmp_path / "runs/whole" / last).read_bytes()


def test_the_ledger_counts_the_copy(tiny_sd3, tmp_path):
    found = {}
    for name, changes in (("beside", BESIDE), ("at once", {})):
        config = read(write_config(tmp_path, tiny_sd3, changes))
        found[name] = ledger_of(config, plan_of(config, kind="cuda")).on(Spread())
    (copy,) = [entry for entry in found["beside"].resident if entry.owner == "copy of a checkpoint"]
    assert copy.place == "host" and copy.bytes == 12 * found["beside"].trained
    assert found["beside"].host == found["at once"].host + copy.bytes and found["beside"].peak == found["at once"].peak
