"""The layer counts of models in use, at small width, cut over two processes: a step with reference and average, saved, gone on with,
exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from children import launch
from tiny_runs import write_config

from grpo_mm.config.typed_yaml import merge
from grpo_mm.pipelines.zoo import random_weights
from grpo_mm.tools.export import export
from grpo_mm.weights import checkpoint

SIZES = {
    "sd35_medium": dict(num_attention_heads=1, caption_projection_dim=64, pos_embed_max_size=96),
    "flux_dev": dict(num_attention_heads=1),
    "qwen2_5_vl/7b": dict(
        text=dict(vocab_size=1024, hidden_size=64, intermediate_size=96, num_attention_heads=2, num_key_value_heads=1),
        vision=dict(hidden_size=32, intermediate_size=48, num_heads=2), mrope_section=[6, 5, 5],
    ),
}  # fmt: skip
"""What is smaller than it is in the model of that name."""
COMMON = {
    "prompts_per_step": 2, "group_size": 2, "updates": {"count": 1}, "ema": {"decay": 0.5, "every_updates": 1}, "eval_prompts": None,
    "optim": {"lr": 1e-4}, "checkpoints": {"every": 1}, "distributed": {"kind": "sharded", "timeout_minutes": 3},
}  # fmt: skip
PICTURES = {
    "policy": {"lora": None, "guidance": 3.5},
    "objective": [{"kind": "clipped_ratio"}, {"kind": "kl", "form": "gaussian"}],
}
RUNS = {
    "sd35_medium": merge(PICTURES, {"policy": {"model": {"path": "random:sd35_medium"}}}),
    "flux_dev": merge(PICTURES, {"policy": {"model": {"kind": "flux", "path": "random:flux_dev"}}, "engine": {"schedule": {"kind": "flux"}}}),
}  # fmt: skip
TEXTS = {
    "policy": {"kind": "vlm", "path": "random:qwen2_5_vl/7b", "dtype": "bfloat16", "gradient_checkpointing": True},
    "engine": {"kind": "vlm", "max_new_tokens": 6},
    "objective": [{"kind": "clipped_ratio"}, {"kind": "kl", "form": "k3", "weight": 0.04}],
    "prompts": {"pictures": {"use": {"kind": "grpo_mm.pipelines.zoo.random_clips:RandomPictures"}}},
    "rewards": {"chance": {"use": "grpo_mm.pipelines.zoo.random_clips:by_chance"}},
}  # fmt: skip
SCRIPT = """
import sys
from grpo_mm.entry import train
from test_real_depth import shrink

shrink(sys.argv[1])
for steps in (1, 2):
    train(sys.argv[2], [f"steps={steps}"])
"""


def shrink(name: str) -> None:
    """The sizes of a model of random weights, but for its layers."""
    for table in (random_weights.SD3_TRANSFORMERS, random_weights.FLUX_TRANSFORMERS, random_weights.VISION_LANGUAGE):
        if name in table:
            table[name] = merge(table[name], SIZES[name])


def written(folder: Path, name: str) -> Path:
    path = write_config(folder, "", {})
    settings = yaml.safe_load(path.read_text())
    if name == "qwen2_5_vl/7b":
        settings = {k: v for k, v in settings.items() if k not in ("policy", "engine", "prompts", "rewards")} | TEXTS
    else:
        settings = merge(settings, RUNS[name])
    settings = {k: v for k, v in merge(settings, COMMON).items() if v is not None}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SIZES)
def test_a_step_at_real_depth_is_saved_gone_on_with_and_exported(name, tmp_path, monkeypatch):
    config = written(tmp_path, name)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launch(script, name, config, timeout_seconds=900)
    run = tmp_path / "runs/tiny"
    first, second = (dict(checkpoint.read(run / f"checkpoints/step_00000{n}").tensors["weights"]) for n in (1, 2))
    layers = {
        "sd35_medium": (".23.",),
        "flux_dev": ("transformer_blocks.18.", "single_transformer_blocks.37."),
        "qwen2_5_vl/7b": (".27.",),
    }
    for part in layers[name]:
        moved = [key for key in first if part in key and not torch.equal(first[key], second[key])]
        assert moved, part
    for table in (random_weights.SD3_TRANSFORMERS, random_weights.FLUX_TRANSFORMERS, random_weights.VISION_LANGUAGE):
        if name in table:
            monkeypatch.setitem(table, name, merge(table[name], SIZES[name]))
    product = export(run, to=tmp_path / "product")
    assert any(product.rglob("*.safetensors")) and (run / "model").is_dir()
