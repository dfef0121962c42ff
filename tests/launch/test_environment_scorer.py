"""A reward with packages of its own that a service of a launch scores: made there, asked over HTTP, the same scores."""

import os
import signal
from pathlib import Path

import pytest
from launches import launched
from spelling import write_speller
from tiny_runs import PYTHONPATH, record, weights
from wheels import wheel, without_an_index

from grpo_mm import train
from grpo_mm.config.run_config import read
from grpo_mm.launch.here import Here
from grpo_mm.tools.serving.launch import job_of

MODULE = """
import time
from dataclasses import dataclass

import torch
from spelling import SpelledRight


@dataclass(frozen=True)
class Versioned(SpelledRight):
    def __call__(self, items, prompts):
        import tinyscore  # in the environment alone

        time.sleep(0.2)  # so that the run is there for long after its second step

        scores = super().__call__(items, prompts)
        return {**scores, "version": torch.full_like(scores["score"], tinyscore.VERSION)}
"""
STEPS = 20
pytestmark = pytest.mark.timeout(900)
"""It makes an environment and starts three processes, each of which imports everything: 300 s may pass on a machine with much else to do."""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "1.5")
    (tmp_path / "versioned.py").write_text(MODULE)
    (tmp_path / "mine.txt").write_text("tinyscore==1.5\n")
    without_an_index(monkeypatch, tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), PYTHONPATH]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(tmp_path))
    right = {"use": {"kind": "versioned:Versioned"}, "environment": "./mine.txt"}
    return write_speller(tmp_path, {"steps": STEPS, "rewards": {"right": right}})


def own(run):
    """Without what counts calls of services and memory."""
    services = ("calls/remote_requests", "calls/remote_repeats", "calls/service_restarts")
    return [{k: v for k, v in row.items() if k not in services and not k.startswith("memory/")} for row in record(run)]


def test_a_service_scores_in_the_environment_and_is_killed_and_the_run_is_that_without_a_launch(config, tmp_path):
    words = ["name=there", "launch.scorers.eyes={rewards: [right]}"]
    place, killed = Here(), []

    def kill(launcher, told):
        if told[-1].startswith("step 2/") and not killed:
            killed.append(launcher._services._all[0].said["pid"])
            os.kill(killed[0], signal.SIGKILL)

    code, told, launcher = launched(job_of(read(config, words), config, words, place=place), place, during=kill)
    assert code == 0 and killed and launcher._services.restarts == 1, "\n".join(told)
    train(config, ["name=here"])
    here, there = tmp_path / "runs/here", tmp_path / "runs/there"
    assert own(here) == own(there) and weights(here, STEPS) == weights(there, STEPS)
    rows = record(there)
    assert len(rows) == STEPS and all(row["reward/right/version"] == 1.5 for row in rows)
    assert all(row["reward/failed_frac"] == 0 for row in rows)
    made = [path for path in (tmp_path / "cache/grpo_mm/environments").iterdir() if path.is_dir()]
    assert len(made) == 1 and Path(made[0], "grpo_mm_ready.json").is_file()  # once for both
