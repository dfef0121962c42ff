"""A launch with a real engine server that is killed: the rows are asked again, and only answers of the right weights are trained on."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

import pytest
from conftest import ROOT
from launches import launched
from tiny_runs import record

from grpo_mm.config.run_config import read
from grpo_mm.launch.here import Here
from grpo_mm.tools.serving.launch import job_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-engines installs it"),
]
STEPS = 6


def test_a_killed_engine_comes_back_with_the_weights_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, killed = ROOT / "configs/quickstart/video.yaml", []
    settings = [
        "engine.generator={kind: vllm_server, start: {}}", "launch.engines={replicas: 1}", "device=cpu", "threads=1", f"steps={STEPS}",
        f"runs_dir={tmp_path}", "name=run", "evaluation.limit=4",
    ]  # fmt: skip
    place = Here()

    def kill(launcher, told):
        if told[-1].startswith("step 3/") and not killed:
            killed.append(launcher._services._all[0].said["pid"])
            os.kill(killed[0], signal.SIGKILL)

    code, told, launcher = launched(job_of(read(config, settings), config, settings, place=place), place, during=kill)
    assert code == 0 and killed, "\n".join(told)
    rows = [row for row in record(tmp_path / "run") if "reward/failed_frac" in row]
    assert launcher._services.restarts == 1 and len(launcher.starts) == 1 and len(rows) == STEPS
    assert sum(row.get("calls/engine_restarts", 0) for row in rows) == 1
    assert sum(row.get("calls/engine_weights_brought", 0) for row in rows) > 1
    assert all(row["reward/failed_frac"] == 0 and row["policy/logprob_gap"] < 1e-4 for row in rows)
