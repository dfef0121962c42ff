"""Runs that are hacked on purpose and honest ones, in each modality: what their verdicts are. 15 to 35 seconds of one core each."""

import json

import pytest
from conftest import ROOT

from grpo_mm.entry import train
from grpo_mm.looking.report.page import write_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # a busy machine takes twenty times as long

FEW = ["threads=1", "samples_every=0", "checkpoints.every=0", "evaluation.show=4", "prompts_per_step=4"]
FLOW = [*FEW, "evaluation.limit=48", "group_size=8", "optim.lr=4e-4", "steps=16"]
TEXTS = [*FEW, "evaluation.limit=96", "optim.lr=1e-3", "steps=24"]
FORMAT = ", format: {use: {kind: tag_format, template: think_answer}, weight: 0.0}"
"""The scenes' quickstart names two rewards; the other one is switched off."""
HACKED = {
    "bright": ("flow", "luminance"),
    "saturated": ("flow", "saturation"),
    "contrasty": ("flow", "share of pictures unlike all before"),
    "half_lit": ("flow", "share of pictures unlike all before"),
    "one_picture": ("flow", "difference between prompts' pictures"),
    "widest_span": ("video", "share of the most frequent answer", "agreement with truth"),
    "always_1_5_to_7": ("video", "agreement with truth"),
    "shell": ("spatial", "share of unparsed answers", "agreement with truth"),
    "always_red": ("spatial", "agreement with truth"),
    "longest": ("spatial", "agreement with truth"),
}
"""Reward → quickstart, what the sentence names."""
SHUFFLED = "advantage=[{kind: shuffle}, {kind: weighted_sum}, {kind: group_norm}, {kind: clamp}]"


def verdict_of(tmp_path, quickstart, *changes):
    config = ROOT / "configs" / "quickstart" / f"{quickstart}.yaml"
    summary = train(config, [f"runs_dir={tmp_path}", *changes])
    found = summary["verdict"]
    assert json.loads((tmp_path / summary["name"] / "summary.json").read_text())["verdict"] == found
    assert found["sentence"].split(":")[0] in write_report(tmp_path / summary["name"]).read_text()
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("reward", HACKED)
def test_a_run_that_is_hacked_on_purpose_is_suspect(tmp_path, reward, seed):
    quickstart, *moved = HACKED[reward]
    name, other = {"flow": ("shape", ""), "video": ("iou", ""), "spatial": ("accuracy", FORMAT)}[quickstart]
    rewards = f'rewards={{{name}: {{use: "hacked_rewards:{reward}"}}{other}}}'
    found = verdict_of(tmp_path, quickstart, rewards, *(FLOW if quickstart == "flow" else TEXTS), f"seed={seed}")
    assert found["verdict"] == "suspect" and any(sign in found["sentence"] for sign in moved)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("quickstart", ["flow", "video", "spatial"])
def test_an_honest_run_is_not_suspect(tmp_path, quickstart, seed):
    changes = FLOW if quickstart == "flow" else [*TEXTS, "optim.lr=2e-4"]
    found = verdict_of(tmp_path, quickstart, *changes, f"seed={seed}")
    assert found["verdict"] in ("better", "not distinguishable", "worse")


@pytest.mark.parametrize(
    "changes", [[SHUFFLED], ["rewards={shape: {use: 'hacked_rewards:coin'}}"]], ids=["shuffled", "coin"]
)
def test_a_run_that_has_nothing_to_learn_is_not_better(tmp_path, changes):
    assert verdict_of(tmp_path, "flow", *FLOW, *changes)["verdict"] in ("not distinguishable", "worse")
