"""Every setting of configs/clips takes a full step on a tiny checkpoint of its form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from conftest import ROOT
from test_published_configs import check_calls
from typer.testing import CliRunner
from wan_models import checkpoint, picture

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.entry import train
from grpo_mm.registry import entries

CONFIGS = sorted((ROOT / "configs/clips").glob("*.yaml"))
FORMS = {"flow_grpo_wan21_1b": "t2v", "nft_wan21_1b": "t2v", "dance_wan21_i2v": "i2v", "fast_wan22_5b_i2v": "5b",
         "fast_wan22_a14b": "a14b"}  # fmt: skip
QUICK = ("fast_wan22_a14b",)


def red(clips, prompts, metadata):
    return [float((clip[:, 0].float() - clip[:, 2].float()).mean()) / 255 for clip in clips]


def overrides(path: Path, tmp_path: Path, model: str) -> list[str]:
    """What a user without the data and the GPUs would give: files, sizes, batches; a function stands in for networks that score."""
    (tmp_path / "prompts.txt").write_text('a sign "red"\na photo of a "circle"\nthe "blue" square\n')
    rows = []
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": f"the circle {'turns' * (i + 1)}"})
    (tmp_path / "frames.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = read(path, unset=[])
    kind = next(iter(config.prompts))
    file = tmp_path / ("prompts.txt" if kind == "ocr" else "frames.jsonl")
    text = [] if FORMS[path.stem] == "i2v" else ["policy.text_length=16"]
    by_group = config.updates.count if config.updates.by == "group" else 1
    name = next(iter(config.rewards))
    return [
        f"policy.model.path={model}", "policy.height=32", "policy.width=64", "policy.frames=5", "policy.eval_height=null",
        "policy.eval_width=32", "policy.eval_frames=9", *text, "policy.micro_batch=8", "policy.decode_batch=8", "engine.rollout_batch=8",
        "engine.eval_steps=2", f"prompts_per_step={by_group}", "group_size=2", "steps=1", "evaluation={every: 0, limit: 1}",
        f"prompts.{kind}.use.path={file}", f"eval_prompts.{kind}.use.path={file}", f"runs_dir={tmp_path}/runs", "device=cpu",
        "rewards={}", "watch={}", f"rewards={{{name}: {{use: {{kind: function, path: 'test_clip_configs:red'}}}}}}", "watch={motion: {use: motion_amount}}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.slow) for p in CONFIGS]
)
def test_a_setting_takes_a_full_step(path, tmp_path, tmp_path_factory):
    model = checkpoint(FORMS[path.stem], tmp_path_factory.getbasetemp() / "wan")
    changed = overrides(path, tmp_path, model)
    rows = []
    train(path, changed, on_step=lambda step, row: rows.append(row))
    (row,) = rows
    assert math.isfinite(row["loss/total"]) and row["optim/bad_updates"] == 0
    assert row["optim/grad_norm"] > 0 and row["reward/failed_frac"] == 0
    assert row["policy/logprob_gap"] <= 0.05
    check_calls(read(path, changed), row)


def test_every_setting_is_shown_with_its_geometry_and_named_by_the_table():
    assert {path.stem for path in CONFIGS} == set(FORMS)
    presets = {entry.config for entry in entries("preset") if entry.config.startswith("configs/clips/")}
    assert presets == {f"configs/clips/{path.name}" for path in CONFIGS}
    for path in CONFIGS:
        result = CliRunner().invoke(app, ["show", str(path), "--no-memory"])
        config = read(path, unset=[])
        rows = f"{config.prompts_per_step} prompts × {config.group_size} samples"
        assert rows in result.output and "network calls per step" in result.output, result.output
        evaluated, trained = (config.policy.size(evaluation=e) for e in (True, False))
        assert math.prod(evaluated) > 4 * math.prod(trained)
