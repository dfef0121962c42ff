"""Distilled checkpoints: recognised by files and names, spoken of by `show` and by runs, and calibrated."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from tiny_runs import write_config
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.config.without_effect import remarks, tell_what_has_no_effect
from grpo_mm.pipelines.flow.calibrated import Calibrated
from grpo_mm.pipelines.flow.published.distilled import signs_of_checkpoint, signs_of_name, steps_of_name
from grpo_mm.tools.calibrate import calibrate

FEW = {
    "black-forest-labs/FLUX.1-schnell": 4, "stabilityai/stable-diffusion-3.5-large-turbo": 4, "Tongyi-MAI/Z-Image-Turbo": 8,
    "black-forest-labs/FLUX.2-klein-4B": 4, "lightx2v/Qwen-Image-Lightning": None, "ByteDance/Hyper-SD": None,
    "somebody/Qwen-Image-Lightning-8steps": 8, "/data/models/sd3.5-4steps-dmd2": 4,
}  # fmt: skip
MANY = (
    "black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-3.5-large", "Tongyi-MAI/Z-Image", "Qwen/Qwen-Image-2512",
    "black-forest-labs/FLUX.2-klein-base-9B", "/turbo/a/b/sd35", "runs/step_000100/product", "me/hypernetwork",
)  # fmt: skip


def test_names_tell_and_only_the_last_folders_are_names():
    for name, steps in FEW.items():
        assert signs_of_name(name), name
        assert steps_of_name(name) == steps, name
    assert not [name for name in MANY if signs_of_name(name)]


def a_copy(path: str, folder: Path, file: str = "model_index.json", **settings: object) -> str:
    """The checkpoint in another folder, with other settings in one of its files."""
    shutil.copytree(path, folder)
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | settings))
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "file", "settings", "said"),
    [
        ("flux2_klein", "model_index.json", {"is_distilled": True}, "is_distilled"),
        ("qwen_image21", "model_index.json", {"sample_sigmas": [1.0, 0.75, 0.5, 0.25]}, "noise levels of 4 steps"),
        ("flux", "transformer/config.json", {"guidance_embeds": False}, "guidance_embeds is false"),
        ("qwen_image", "scheduler/scheduler_config.json", {"base_shift": 1.1, "max_shift": 1.1}, "shifts all sizes alike"),
        ("sd3", "model_index.json", {"_name_or_path": "stabilityai/stable-diffusion-3.5-large-turbo"}, "turbo"),
    ],
)  # fmt: skip
def test_files_tell(kind, file, settings, said, checkpoints, tmp_path):
    assert signs_of_checkpoint(checkpoints[kind]) == []
    sign = signs_of_checkpoint(a_copy(checkpoints[kind], tmp_path / "here", file, **settings))[0]
    assert said in sign


def config_of(tmp_path, kind: str, path: str, **changes: object) -> Path:
    model = {"kind": kind, "path": path, **changes.pop("model", {})}
    policy = {"model": model, "guidance": 1.0, "text_length": 32, **changes.pop("policy", {})}
    return write_config(tmp_path, path, {"policy": policy, **changes})


def test_show_and_a_run_say_it_with_the_command_that_measures(checkpoints, tmp_path, caplog):
    path = a_copy(checkpoints["z_image"], tmp_path / "Z-Image-Turbo")
    config = config_of(tmp_path, "z_image", path)
    shown = " ".join(CliRunner().invoke(app, ["show", str(config), "--no-memory"]).output.split())
    with caplog.at_level(logging.WARNING):
        tell_what_has_no_effect(read(config))
    for said in (shown, caplog.text):
        assert "Z-Image-Turbo' is distilled to about 8 steps: its name says turbo" in said
        assert "engine.steps = 3 and engine.eval_steps = 2" in said and "pictures blur" in said
        assert "grpo-mm calibrate CONFIG engine.steps=8 --out noise.json" in said
        assert "policy.guidance=0 is none" in said and "1 is what others call 2" in said
    assert len(remarks(read(config, ["policy.model.distilled=false", "policy.guidance=0"]))) == 0
    plain = read(config_of(tmp_path, "z_image", checkpoints["z_image"], policy={"guidance": 0.0}))
    assert remarks(plain) == []


def test_a_setting_and_an_adapter_say_it_too(checkpoints, tmp_path):
    told = read(config_of(tmp_path, "sana", checkpoints["sana"], model={"distilled": True}))
    assert "policy.model.distilled says so" in remarks(told)[0]
    adapter = {"merge_adapter": "somebody/Qwen-Image-Lightning-8steps"}
    added = read(config_of(tmp_path, "qwen_image", checkpoints["qwen_image"], policy=adapter))
    assert "Lightning-8steps' is distilled to about 8 steps" in remarks(added)[0]


def test_where_finished_pictures_are_trained_no_noise_is_spoken_of(checkpoints, tmp_path):
    engine = {"kind": "forward_process", "steps": 4, "eval_steps": 4}
    changes = {"engine": engine, "objective": [{"kind": "nft"}], "model": {"distilled": True}}
    assert len(remarks(read(config_of(tmp_path, "sana", checkpoints["sana"], **changes)))) == 1


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in ("z_image", "sana") else pytest.mark.slow)
             for kind in ("sd3", "flux", "z_image", "flux2_klein", "qwen_image", "qwen_image21", "sana")]
)  # fmt: skip
def test_the_command_measures_a_level_for_every_family_and_a_run_takes_it(kind, checkpoints, tmp_path):
    from grpo_mm.entry import train

    guidance = 0.0 if kind == "z_image" else 1.0
    config = config_of(tmp_path, kind, checkpoints[kind], policy={"guidance": guidance})
    found = calibrate(config, out=tmp_path / "noise.json", settings=Calibrated(rounds=1))
    assert len(found["levels"]) == 3 and found["levels"][0] > 0
    noise = f"engine.noise={{kind: noise_file, path: {tmp_path}/noise.json}}"
    assert train(config, [noise, "engine.kernel=dance_sde", "steps=1", "eval_prompts={}"])["steps"] == 1
