"""Every shipped config loads, shows its arithmetic, and takes a full step on a tiny checkpoint of its format."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config import read_yaml
from grpo_mm.registry import entries
from grpo_mm.run_config import read
from grpo_mm.train import train

FLOW = sorted((ROOT / "configs/flow").glob("*.yaml"))
ALL = sorted(p for folder in ("flow", "quickstart", "bench") for p in (ROOT / "configs" / folder).glob("*.yaml"))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> str:
    """A random CLIP model in a folder that open_clip loads."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**model_cfg)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return str(folder)


def paths_and_sizes(path, tmp_path, models, clip) -> list[str]:
    """Overrides that a user without the data and the GPUs would give: files, picture size, batch sizes; nothing else."""
    plain = read_yaml(path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('a sign "red"\na photo of a "circle"\nthe "blue" square\na "green" circle\n')
    found = [
        f"policy.model.path={models[plain['policy']['model']['kind']]}",
        "policy.height=32", "policy.width=32", "policy.text_length=16", "policy.micro_batch=8",
        "engine.rollout_batch=4", "engine.eval_steps=2",
        f"prompts_per_step={plain['updates']['count']}", "group_size=2", "steps=1",
        "evaluation={every: 0, limit: 1}", f"runs_dir={tmp_path}/runs", "device=cpu",
    ]  # fmt: skip
    found += [f"{part}.{name}.use.path={prompts}" for part in ("prompts", "eval_prompts") for name in plain[part]]
    if "clip" in plain["rewards"]:
        found.append(f"rewards.clip.use={{kind: clip_score, model: 'local-dir:{clip}'}}")
    return found


@pytest.mark.parametrize("path", FLOW, ids=lambda p: p.stem)
def test_published_setting_takes_a_full_step(path, tmp_path, tiny_sd3, tiny_flux, tiny_clip):
    overrides = paths_and_sizes(path, tmp_path, {"sd3": tiny_sd3, "flux": tiny_flux}, tiny_clip)
    rows = []
    summary = train(path, overrides, on_step=lambda step, row: rows.append(row))
    (row,) = rows
    assert summary["steps"] == 1
    assert math.isfinite(row["loss/total"]) and row["optim/grad_norm"] >= 0
    assert row["reward/failed_frac"] == 0
    low_precision = read_yaml(path)["policy"].get("dtype") == "bfloat16"
    assert row["policy/logprob_gap"] <= (0.05 if low_precision else 1e-5)


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_show_prints_the_arithmetic_of_every_config(path):
    plain = read_yaml(path)
    result = CliRunner().invoke(app, ["show", str(path)])
    rows = plain["prompts_per_step"] * plain["group_size"]
    assert (
        f"{plain['prompts_per_step']} prompts × {plain['group_size']} samples = {rows} rows per step" in result.output
    )
    assert "network calls per step" in result.output


def test_trained_actions_are_those_of_the_papers():
    """Flow-GRPO trains T - 1 steps, Fast 3, MixGRPO 4, DanceGRPO 60 % of 15."""
    actions = {path.stem: read(path).engine.actions() for path in FLOW}
    assert actions["flow_grpo_sd35"] == 9
    assert actions["flow_grpo_flux"] == 5
    assert actions["fast_sd35"] == actions["fast_flux"] == 3
    assert actions["mix_flux"] == actions["mix_flash_flux"] == actions["mix_sd35"] == 4
    assert actions["dance_flux"] == 9


def test_every_flow_config_is_a_preset_of_the_registry():
    assert {entry.config for entry in entries("preset")} == {str(path.relative_to(ROOT)) for path in FLOW}
    for entry in entries():
        assert not entry.config or (ROOT / entry.config).is_file(), entry
