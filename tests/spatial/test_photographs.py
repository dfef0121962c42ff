"""Real photographs through the spatial pipeline: resized by the processor, boxes in every coordinate system, a training step."""

from __future__ import annotations

import math

import pytest
from conftest import ROOT
from tiny_vlm import FAMILIES, folder, policy

from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import build, read_yaml
from grpo_mm.processes.distributed import Processes
from grpo_mm.rewards.spatial.box_grounding import SpatialGrounding
from grpo_mm.training.learner import Learner
from grpo_mm.types import Prompt

# Boxes by eye, in pixels.
PHOTOGRAPHS = {"astronaut": ("person", [20, 0, 500, 512]), "chelsea": ("cat", [60, 0, 451, 300]), "coffee": ("cup", [160, 40, 440, 330])}  # fmt: skip


def photograph(name: str) -> Prompt:
    from PIL import Image

    data = pytest.importorskip("skimage.data")
    label, box = PHOTOGRAPHS[name]
    target = {"boxes": [box], "box_names": [label], "answer": label, "answer_type": "free-form"}
    return Prompt(name, f"Where is the {label}?", media=(Image.fromarray(getattr(data, name)()),), target=target)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_box_is_right_in_every_coordinate_system(family, name):
    p = policy(family, image_pixels=(28 * 28, 28 * 28 * 64))
    prompt = photograph(name)
    seen = p.as_seen(prompt)
    grid, patch = p.encode(prompt).inputs["image_grid_thw"][0], p.processor.image_processor.patch_size
    width, height = prompt.media[0].size
    resized = (int(grid[2]) * patch, int(grid[1]) * patch)
    assert resized == (seen.target["resized_width"], seen.target["resized_height"]) and resized[0] < width
    sizes = {"absolute": resized, "thousand": (1000, 1000), "unit": (1, 1)}
    for coordinates, (across, down) in sizes.items():
        box = [edge * (across, down)[i % 2] / (width, height)[i % 2] for i, edge in enumerate(PHOTOGRAPHS[name][1])]
        score = SpatialGrounding(coordinates=coordinates)([f"<think> <bbox>{box}</bbox> </think>"], [seen])["score"]
        assert float(score[0]) == pytest.approx(1, abs=1e-3)
        wrong = {"absolute": "thousand", "thousand": "unit", "unit": "thousand"}[coordinates]
        other = SpatialGrounding(coordinates=wrong)([f"<think> <bbox>{box}</bbox> </think>"], [seen])["score"]
        assert float(other[0]) < 0.9


def test_a_step_on_photographs_trains(tmp_path, monkeypatch):
    plain = read_yaml(
        ROOT / "configs/quickstart/spatial.yaml",
        [
            f"policy.path={folder('qwen2_5_vl')}", "policy.image_pixels=[784, 50176]", "engine.max_new_tokens=12",
            "prompts_per_step=3", "group_size=3", "steps=1",
        ],
    )  # fmt: skip
    learner = Learner(build(RunConfig, plain), Processes(device="cpu"), samples=tmp_path)
    monkeypatch.setattr(learner.prompts, "batch", lambda *_: [photograph(name) for name in PHOTOGRAPHS])
    row = learner.step(0)
    assert math.isfinite(row["loss/total"]) and row["policy/logprob_gap"] < 1e-4
    assert row["rollout/media_failed"] == 0 and row["reward/failed_frac"] == 0
