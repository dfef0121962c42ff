"""What ends one process ends all of them, with its reason, in the time that the page on sharding says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from children import launched
from test_exactness import write
from test_sharding import TRAIN_ALL

from grpo_mm.config.typed_yaml import merge
from grpo_mm.looking import metrics
from grpo_mm.weights import checkpoint

MINUTES = 0.1
ENDS_ALONE = """
import os
import signal
import sys
import time
from datetime import timedelta

import torch
from grpo_mm.errors import ConfigError
from grpo_mm.processes.distributed import Distributed, Processes
from grpo_mm.processes import notices
from grpo_mm.processes.progress import report

notices.GRACE_SECONDS = 3.0
how, who = sys.argv[1], int(sys.argv[2])
processes = Processes(device="cpu", distributed=Distributed(timeout_minutes=0.05))
with processes.telling():
    processes.gather("here")
    report("reading rows", 3, 7)
    if processes.rank == who:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raises":
            raise KeyError("gone")
        if how == "refuses":
            raise ConfigError("policy.path: no such folder")
        while how == "hangs":
            time.sleep(60)
    processes.gather("there")
"""
STOPS_ALONE = """
import os
import sys
from grpo_mm.entry import train
from grpo_mm.errors import TrainingStopped
from grpo_mm.training.learner import Learner

there = Learner.step


def step(self, number):
    if number == 1 and os.environ["RANK"] == "1":
        raise TrainingStopped("step 2: nothing is left here")
    return there(self, number)


Learner.step = step
train(sys.argv[1])
"""
SAID = {
    "killed": "process {} ended without a word|process 0, by which the others meet, ended without a word",
    "raises": "process {} ended with KeyError: 'gone'",
    "refuses": "process {}: policy.path: no such folder",
    "hangs": "has waited 0.05 minutes .* for process {}, which is at: reading rows, 3 of 7",
}
OTHERS = [("raises", 1), ("refuses", 0), ("killed", 0), ("killed", 1), ("hangs", 0)]


@pytest.mark.parametrize(
    ("how", "who"), [("raises", 0), ("hangs", 1), *(pytest.param(*p, marks=pytest.mark.slow) for p in OTHERS)]
)
def test_all_processes_end_and_say_why(how, who, tmp_path):
    script = tmp_path / "ends.py"
    script.write_text(ENDS_ALONE)
    codes, said = launched(script, how, who, timeout_seconds=90)
    assert 0 not in codes
    assert re.search(SAID[how].format(who), said[1 - who]), said[1 - who]
    if how == "hangs":
        assert re.search(SAID[how].format(who), said[who]) and codes[who] == 3
        assert f"process {who} is ended" in said[who]


def run(folder: Path, model: str, reward: dict, **more: object) -> Path:
    changes = {
        "rewards": {"slow": {"use": {"kind": "function", "path": "tiny_rewards:hangs_beside_main"}, **reward}},
        "distributed": {"timeout_minutes": MINUTES}, "preflight": False, "checkpoints": {"every": 1}, "steps": 2,
    }  # fmt: skip
    return write(folder, model, merge(changes, more))


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [False, True])
def test_a_reward_that_hangs_on_one_process_without_a_limit_ends_all(isolate, tiny_sd3, tmp_path):
    config = run(tmp_path / "run", tiny_sd3, {"isolate": isolate})
    script = tmp_path / "train.py"
    script.write_text(TRAIN_ALL)
    codes, said = launched(script, config, timeout_seconds=150)
    assert 0 not in codes
    for text in said:
        assert (
            "process 0 has waited 0.1 minutes (distributed.timeout_minutes) for process 1, which is at: scoring by"
            in text
        )
        assert "timeout_seconds" in text


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [False, True])
def test_a_reward_that_hangs_on_one_process_with_a_limit_fails_its_rows_and_the_run_goes_on(
    isolate, tiny_sd3, tmp_path
):
    more = {"rewards": {"bright": {"use": "tiny_rewards:bright"}}, "distributed": {"timeout_minutes": 1.0}}
    config = run(tmp_path / "run", tiny_sd3, {"isolate": isolate, "timeout_seconds": 3.0 + 17 * isolate}, **more)
    script = tmp_path / "train.py"
    script.write_text(TRAIN_ALL)
    codes, said = launched(script, config, timeout_seconds=200)
    assert codes == [0, 0], said
    rows = metrics.read(config.parent / "runs/tiny/metrics.jsonl")
    assert [row["reward/failed_frac"] for row in rows] == [0.5, 0.5]
    assert [row["reward/slow/unscored_frac"] for row in rows] == [0.5, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_a_step_that_one_process_cannot_do_ends_all_and_leaves_the_checkpoint(kind, tiny_sd3, tmp_path):
    changes = {"distributed": {"kind": kind, "timeout_minutes": MINUTES}, "checkpoints": {"every": 1}}
    config = write(tmp_path / "run", tiny_sd3, changes)
    script = tmp_path / "train.py"
    script.write_text(STOPS_ALONE)
    codes, said = launched(script, config, timeout_seconds=150)
    assert 0 not in codes and all("step 2: nothing is left here" in text for text in said)
    assert checkpoint.steps(config.parent / "runs/tiny/checkpoints") == [1]
    assert not (config.parent / "runs/tiny/product.json").exists()
