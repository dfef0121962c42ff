"""Checkpoints as they are published: parts that are null, names of other versions; files that are no checkpoint are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.models.known import known_pipeline
from grpo_mm.registry import lookup

OTHERS = {"T5Tokenizer": "T5TokenizerFast", "CLIPTokenizer": "CLIPTokenizer", "Qwen2Tokenizer": "Qwen2TokenizerFast",
          "GemmaTokenizer": "GemmaTokenizerFast", "Qwen3Model": "Qwen3ForCausalLM"}  # fmt: skip
"""What older versions wrote for a class of today."""
KINDS = ("sd3", "flux", "qwen_image", "z_image", "flux2_klein", "sana")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in ("sd3", "sana") else pytest.mark.slow) for k in KINDS]
)
def test_an_index_with_empty_parts_and_older_names_is_read(kind, checkpoints, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(checkpoints[kind], folder)
    index = json.loads((folder / "model_index.json").read_text())
    for part, value in index.items():
        if isinstance(value, list) and value[1] in OTHERS and part.startswith("tokenizer"):
            index[part] = [value[0], OTHERS[value[1]]]
    index |= {"_name_or_path": "somebody/somewhere", "_diffusers_version": "0.32.0.dev0"}
    index |= {part: [None, None] for part in ("image_encoder", "feature_extractor", "safety_checker")}
    (folder / "model_index.json").write_text(json.dumps(index))
    family = lookup("flow_model", kind)(str(folder))
    family.check()
    pipe = family.load(torch.float32, full=False)
    condition = family.encode(pipe, "a red circle", text_length=16, guidance=1.0)
    assert all(value.isfinite().all() for value in condition.values() if value.is_floating_point())
    assert type(known_pipeline(family)[0]).__name__ == family.pipeline


@pytest.mark.parametrize("name", ["flux1-dev.safetensors", "z_image-Q4_K_M.gguf", "sd35.ckpt"])
def test_a_single_file_is_refused_with_what_to_do(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    family = lookup("flow_model", "sana")
    wanted = "GGUF .* policy.quantize" if name.endswith("gguf") else "SanaTransformer2DModel.from_single_file"
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ConfigError, match=wanted):
            family(str(path)).check()
    with pytest.raises(ConfigError, match="GGUF"):
        family("city96/FLUX.1-dev-gguf").check()


def test_a_folder_of_something_else_is_no_single_file(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="no model_index.json"):
        lookup("flow_model", "sana")(str(tmp_path)).check()


def test_qwen_image_with_guidance_as_an_input_is_refused(checkpoints, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(checkpoints["qwen_image"], folder)
    file = Path(folder, "transformer", "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"guidance_embeds": True}))
    with pytest.raises(ConfigError, match="guidance_embeds is true"):
        lookup("flow_model", "qwen_image")(str(folder)).check()


def test_listed_noise_levels_are_the_grid_and_another_number_of_steps_is_refused(tmp_path, checkpoints):
    from grpo_mm.pipelines.flow.own_schedule import grid_of, own_schedule

    folder = tmp_path / "here"
    shutil.copytree(checkpoints["qwen_image21"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"sample_sigmas": [1.0, 0.8, 0.5, 0.2]}))
    family = lookup("flow_model", "qwen_image21")(str(folder))
    pipe = family.load(torch.float32, full=False)
    schedule = own_schedule(pipe, **grid_of(family))
    plain = pipe.scheduler
    plain.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.2], mu=0.6)
    found = schedule(4, image_tokens=64)
    assert len(found) == 5 and found[0] == 1 and found[-1] == 0 and plain.sigmas.shape == found.shape
    with pytest.raises(ConfigError, match="set engine.steps and engine.eval_steps to 4"):
        schedule(10, image_tokens=64)
