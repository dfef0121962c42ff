"""An engine server that Ray has placed, whose node is lost: the run is that of one without Ray, and nothing of the lost node goes on."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
from conftest import ROOT
from launches import gone_within, launched
from tiny_runs import record

from grpo_mm.config.run_config import read
from grpo_mm.launch.here import Here
from grpo_mm.tools.serving.launch import job_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-engines installs it"),
    pytest.mark.skipif(find_spec("ray") is None, reason='needs Ray: pip install "grpo_mm[ray]"'),
]
STEPS = 6


@pytest.fixture
def nodes(monkeypatch):
    from nodes import Nodes

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Nodes()
    try:
        yield made
    finally:
        made.cluster.shutdown()


def words(folder, name):
    scorer = "scorers: {eyes: {rewards: [format], cpus: 0" + (", resources: {home: 1}}}" if name == "ray" else "}}")
    return [
        "engine.generator={kind: vllm_server}", f"launch={{engines: {{replicas: 1}}, {scorer}}}", "device=cpu", "threads=1",
        f"steps={STEPS}", f"runs_dir={folder}", f"name={name}", "evaluation.limit=4",
    ]  # fmt: skip


def test_the_engines_node_is_lost_and_the_run_is_that_without_ray(nodes, tmp_path, monkeypatch):
    from grpo_mm.launch.over_ray import OverRay

    monkeypatch.chdir(ROOT)
    config, lost = ROOT / "configs/quickstart/video.yaml", []
    nodes.have(3)  # the trainer's, the engine's, one to spare
    place, asked = OverRay(nodes.address), words(tmp_path, "ray")

    def lose(launcher, told):
        said = launcher._services._all[-1].said
        if told[-1].startswith("step 3/") and not lost:
            lost.append(said["pid"])
            nodes.lose(said["node"])

    code, told, launcher = launched(job_of(read(config, asked), config, asked, place=place), place, during=lose)
    assert code == 0 and lost, "\n".join(told)
    assert gone_within(lost[0], 30)  # `grpo-mm serve` of the lost node, which would hold its engine
    assert launcher._services.restarts == 1 and len(launcher.starts) == 1
    there, asked = Here(), words(tmp_path, "here")
    code, told, _ = launched(job_of(read(config, asked), config, asked, place=there), there)
    assert code == 0, "\n".join(told)
    rows, others = ([row for row in record(tmp_path / name) if "reward/failed_frac" in row] for name in ("ray", "here"))
    assert len(rows) == STEPS and all(
        row["reward/failed_frac"] == 0 and row["policy/logprob_gap"] < 1e-4 for row in rows
    )
    for key in ("reward/iou/mean", "reward/format/score", "loss/total"):
        found = [[row[key] for row in some] for some in (rows, others) if key in some[0]]
        assert not found or found[0] == pytest.approx(found[1], abs=1e-3), key
    assert "reward/iou/mean" in rows[0] and os.environ["RAY_AUTH_MODE"] == "disabled"
