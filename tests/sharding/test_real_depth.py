"""Models of the published depth, narrow: cut over two processes, one step with reference and average, a checkpoint, one more step from
it, a product that plain libraries load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from children import launch
from test_exactness import assert_equal, write
from test_sharding import SHARDED
from tiny_models import build_flux, build_sd3

from grpo_mm.config.typed_yaml import merge
from grpo_mm.entry import train
from grpo_mm.tools.export import export
from grpo_mm.weights import checkpoint

STEP_BY_STEP = """
import sys
from grpo_mm.entry import train

train(sys.argv[1], ["steps=1"])
train(sys.argv[1], ["steps=2"])
"""
KEEPS_ALL = {
    "steps": 2, "prompts_per_step": 2, "group_size": 2, "updates": {"by": "group", "count": 1}, "policy": {"lora": None},
    "engine": {"steps": 2}, "optim": {"lr": 1e-4}, "ema": {"decay": 0.5, "every_updates": 1},
    "checkpoints": {"every": 1, "keep_last": 2},
}  # fmt: skip
FLOW = {
    "SD3.5-medium": (lambda folder: build_sd3(folder, layers=24, dual=13), {}),
    "FLUX.1-dev": (
        lambda folder: build_flux(folder, layers=19, single=38),
        {"policy": {"guidance": 3.5}, "engine": {"schedule": {"kind": "flux"}}},
    ),
}
TEXTS = {
    "name": "tiny", "steps": 2, "prompts_per_step": 2, "group_size": 2,
    "policy": {"kind": "vlm", "media": {"kind": "frame_store", "decoder": "pyav"}},
    "engine": {"kind": "vlm", "max_new_tokens": 6},
    "prompts": {"clips": {"use": {"kind": "clip_world", "split": "train", "count": 4}}},
    "rewards": {"letters": {"use": {"kind": "function", "path": "tiny_rewards:letters"}}},
    "advantage": [{"kind": "weighted_sum"}, {"kind": "group_norm"}],
    "objective": [{"kind": "clipped_ratio", "clip_low": 0.2, "clip_high": 0.2}, {"kind": "kl", "form": "k3", "weight": 0.1}],
    "optim": {"lr": 1e-5}, "ema": {"decay": 0.5, "every_updates": 1}, "checkpoints": {"every": 1, "keep_last": 2},
    "samples_every": 0, "device": "cpu", "threads": 1,
}  # fmt: skip


def trained(config: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    path = config.parent / "runs/tiny/checkpoints" / checkpoint.name_of(step)
    return {name: dict(tensors) for name, tensors in checkpoint.read(path).tensors.items()}


def go(config: Path) -> None:
    """Two processes, one step each time they are started."""
    script = config.parent / "steps.py"
    script.write_text(STEP_BY_STEP)
    launch(script, config)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "gather"), [*((name, "phase") for name in FLOW), ("SD3.5-medium", "forward")])
def test_pictures(name, gather, tmp_path):
    build, more = FLOW[name]
    model = str(build(tmp_path / "model"))
    kind = {"SD3.5-medium": "sd3", "FLUX.1-dev": "flux"}[name]
    settings = merge(merge(KEEPS_ALL, more), {"policy": {"model": {"kind": kind, "path": model}}})
    cut = write(tmp_path / "cut", model, merge(settings, merge(SHARDED, {"distributed": {"gather": gather}})))
    alone = write(tmp_path / "alone", model, settings)
    go(cut)
    train(alone)
    found, wanted = trained(cut, 2), trained(alone, 2)
    for part in ("weights", "snapshots", "optimizer"):
        # A reference that is the base model is named where weights are cut, and not kept.
        here, there = ({k: v.double() for k, v in of[part].items() if k[:4] != "ref/"} for of in (found, wanted))
        assert here.keys() == there.keys() and here
        assert_equal(here, there, to=1e-9)
    product = export(cut.parent / "runs/tiny", to=tmp_path / "product")
    network = json.loads((product / "transformer/config.json").read_text())
    depth = {"SD3.5-medium": (24, None), "FLUX.1-dev": (19, 38)}[name]
    assert (network["num_layers"], network.get("num_single_layers")) == depth


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_texts(tmp_path):
    from transformers import AutoModelForImageTextToText

    from grpo_mm.pipelines.zoo import vision_language

    torch.manual_seed(0)
    model, processor = vision_language.untrained(dim=64, layers=28, vision_dim=32, vision_layers=32)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    configs = {}
    for name, more in (("cut", SHARDED), ("alone", {})):
        here = {"policy": {"path": str(tmp_path / "model")}, "runs_dir": str(tmp_path / name / "runs")}
        configs[name] = tmp_path / name / "run.yaml"
        configs[name].parent.mkdir()
        configs[name].write_text(yaml.safe_dump(merge(merge(TEXTS, here), more)))
    go(configs["cut"])
    train(configs["alone"])
    found, wanted = (trained(configs[name], 2)["weights"] for name in ("cut", "alone"))
    start = {name: p.detach() for name, p in model.named_parameters() if name in wanted}
    moved = max(float((wanted[name] - start[name]).abs().max()) for name in wanted)
    apart = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
    assert len(start) == len(wanted) > 28 * 10 and moved > 1e-6 and apart < 0.05 * moved
    product = export(configs["cut"].parent / "runs/tiny", to=tmp_path / "product")
    loaded = AutoModelForImageTextToText.from_pretrained(product)
    assert loaded.config.text_config.num_hidden_layers == 28 and loaded.config.vision_config.depth == 32
