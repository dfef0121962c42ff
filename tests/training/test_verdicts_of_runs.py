"""Runs that are hacked on purpose and honest ones, in each modality: what their verdicts are. Minutes each."""

import json

import pytest
from conftest import ROOT

from grpo_mm.entry import train
from grpo_mm.looking.report.page import write_report

FEW = ["threads=1", "evaluation.limit=32", "samples_every=0", "checkpoints.every=0", "evaluation.show=4"]
HACKED = {
    "bright": ("flow", "shape", 24, 4e-4, "luminance"),
    "dark": ("flow", "shape", 24, 4e-4, "luminance"),
    "widest_span": ("video", "iou", 40, 1e-3, "difference between prompts' answers"),
    "shortest": ("spatial", "accuracy", 40, 1e-3, "answer length"),
}


def verdict_of(tmp_path, quickstart, *changes):
    config = ROOT / "configs" / "quickstart" / f"{quickstart}.yaml"
    summary = train(config, [*FEW, f"runs_dir={tmp_path}", *changes])
    found = summary["verdict"]
    assert json.loads((tmp_path / summary["name"] / "summary.json").read_text())["verdict"] == found
    assert found["sentence"].split(":")[0] in write_report(tmp_path / summary["name"]).read_text()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("reward", HACKED)
def test_a_run_that_is_hacked_on_purpose_is_suspect(tmp_path, reward, seed):
    quickstart, name, steps, lr, moved = HACKED[reward]
    other = (
        ", format: {use: {kind: tag_format, template: think_answer}, weight: 0.0}" if quickstart == "spatial" else ""
    )
    rewards = f'rewards={{{name}: {{use: "hacked_rewards:{reward}"}}{other}}}'
    found = verdict_of(tmp_path, quickstart, rewards, f"steps={steps}", f"optim.lr={lr}", f"seed={seed}")
    assert found["verdict"] == "suspect" and moved in found["sentence"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("quickstart", ["flow", "video", "spatial"])
def test_an_honest_run_is_not_suspect(tmp_path, quickstart, seed):
    found = verdict_of(tmp_path, quickstart, "steps=20", f"seed={seed}")
    assert found["verdict"] in ("better", "not distinguishable") and found["signs"] == []
