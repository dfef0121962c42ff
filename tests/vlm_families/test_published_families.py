"""Settings of one run for each newer family: free of contradictions, a full step on a tiny checkpoint, memory on cards by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_vlm
from conftest import ROOT
from PIL import Image

from grpo_mm.config.run_config import read
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.forecast import ledger_of, plan_of
from grpo_mm.training.learner import Learner

CONFIGS = sorted((ROOT / "configs/vlm").glob("*.yaml"))
FORMATS = {"qwen3vl": "qwen3_vl_moe", "qwen35": "qwen3_5_moe", "internvl35": "internvl", "glm41v": "glm4v"}
"""Part of a config's name → the model format."""
BILLIONS = {"qwen3vl": 31.07, "qwen35": 35.11, "internvl35": 2.35, "glm41v": 10.29}
"""10⁹ weights of the checkpoint that it names."""
QUICK = ("internvl35", "qwen35")
"""The others are slow."""


def part(path: Path) -> str:
    return path.stem.split("_")[1]


each_config = pytest.mark.parametrize(
    "path",
    [path if part(path) in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in CONFIGS],
    ids=lambda path: path.stem,
)


def test_every_family_has_one():
    assert sorted(map(part, CONFIGS)) == sorted(FORMATS)
    for path in CONFIGS:
        read(path, ["data.test=rows.json"]).check_settings()


@each_config
def test_a_full_step_on_a_tiny_checkpoint(path, tmp_path):
    rows = []
    for number in range(4):
        Image.new("RGB", (56, 28 + 28 * (number % 2)), (60 * number, 90, 30)).save(tmp_path / f"{number}.png")
        rows.append({"images": [f"{number}.png"], "problem": "<image>How large is x?", "answer": str(number)})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    family = FORMATS[part(path)]
    pixels = [] if family == "internvl" else ["policy.image_pixels=[784, 7056]"]
    config = read(path, [
        f"data={{train: {tmp_path}/rows.json, test: {tmp_path}/rows.json}}", f"policy.path={tiny_vlm.folder(family)}",
        "policy.dtype=float32", "policy.micro_batch=5", "prompts_per_step=4", "engine.max_new_tokens=6", "steps=1",
        "distributed.kind=replicated", "device=cpu", "evaluation.every=0", "samples_every=0", *pixels,
    ])  # fmt: skip
    config.check()
    found = Learner(config, Processes(device="cpu"), samples=tmp_path).step(0)
    assert found["policy/logprob_gap"] < 1e-4 and 0 <= found["reward/accuracy/mean"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_memory_is_known_before_it_is_downloaded(path):
    """Of few prompts and short answers: counting layers with linear attention prompt by prompt takes its time."""
    config = read(path, ["data.test=rows.json", "engine.max_new_tokens=64", "prompts_per_step=4"])
    ledger = ledger_of(config, plan_of(config))
    assert ledger.weights / 1e9 == pytest.approx(BILLIONS[part(path)], abs=0.01)
    each = 2 if config.policy.lora is not None else 16  # frozen in bfloat16; or with gradients and moments, in float32
    assert ledger.peak > each * 0.9 * 1e9 * BILLIONS[part(path)]
    experts = "the router's loss for balance is no part of the objective" in "\n".join(ledger.said)
    assert experts == (part(path) in ("qwen3vl", "qwen35"))
