"""An engine with weights of its own that draws while the policy is trained: vLLM in this process; skipped by name without it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_runs import record

from grpo_mm.entry import train
from grpo_mm.looking import metrics
from grpo_mm.pipelines.vlm.sampling.vllm_generator import VllmGenerator

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-engines"),
]


class Gone(Exception):
    pass


def run(folder: Path, name: str, *, until: int | None = None) -> list[dict[str, float]]:
    def on_step(step: int, row: dict[str, float]) -> None:
        if step == until:
            raise Gone

    train(
        ROOT / "configs/quickstart/video.yaml",
        [
            "steps=3", f"name={name}", f"runs_dir={folder}", "rollout_ahead=1", "prompts_per_step=2", "group_size=4", "samples_every=0",
            "engine.generator={kind: vllm, longest: 1024, at_once: 32}", "prompts.clips.use.count=16", "eval_prompts.clips.use.count=2",
            "optim.warmup_updates=0", "checkpoints.every=1",
        ],
        on_step=on_step,
    )  # fmt: skip
    return record(folder / name)


def test_rows_drawn_beside_the_update_are_those_drawn_before_it_and_a_run_goes_on_with_them(tmp_path, monkeypatch):
    beside = run(tmp_path, "beside")
    steps = [row for row in metrics.read(tmp_path / "beside/metrics.jsonl") if "loss/total" in row]
    assert all(row["time/beside/rollout_network_seconds"] > 0 for row in steps[:2])
    assert [row["rollout/staleness"] for row in steps] == [0, 1, 1]
    assert steps[0]["policy/logprob_gap"] < 1e-4 < steps[1]["policy/logprob_gap"]
    with pytest.raises(Gone):
        run(tmp_path, "again", until=2)
    assert run(tmp_path, "again") == beside
    monkeypatch.setattr(VllmGenerator, "draws_apart", False)
    assert run(tmp_path, "before") == beside
