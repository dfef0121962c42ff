"""Weights of rewards, judges and detectors that are not what they should be: refused by file when they are loaded."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_reward_models import (
    BLIP,
    build_dino,
    build_image_reward,
    build_open_clip,
    build_pick_score,
    build_qwen_vl,
    published_image_reward,
)
from tiny_runs import write_config

from grpo_mm import train
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.policy import FlowPolicy
from grpo_mm.rewards.images.clip_score import ClipScore
from grpo_mm.rewards.images.detectors import OnnxDetector, TransformersDetector
from grpo_mm.rewards.images.geneval import GenEvalReward
from grpo_mm.rewards.images.hps import Hps
from grpo_mm.rewards.images.image_reward import ImageReward
from grpo_mm.rewards.images.nearest_neighbour import NearestNeighbour
from grpo_mm.rewards.images.pick_score import PickScore
from grpo_mm.rewards.judges.vlm import TransformersVlm
from grpo_mm.rewards.judges.vlm_yes_no import VlmYesNo
from grpo_mm.tools.inference import evaluate


def build_yolos(folder: Path) -> str:
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = YolosConfig(image_size=[32, 32], patch_size=8, num_detection_tokens=4, **small)
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 32}).save_pretrained(folder)
    return str(folder)


BUILD = {
    "pick": build_pick_score,
    "open_clip": build_open_clip,
    "vlm": build_qwen_vl,
    "dino": build_dino,
    "yolos": build_yolos,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            made[name] = BUILD[name](tmp_path_factory.mktemp(name))
        return made[name]

    return folder


def _first(tensors: dict) -> str:
    return next(name for name in sorted(tensors) if tensors[name].ndim == 2 and tensors[name].is_floating_point())


def _spoilt(how: str, file: Path) -> None:
    """A tensor of a file of weights is damaged, or the file is."""
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return
    stored = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    tensors = stored.get("state_dict", stored)
    name = _first(tensors)
    match how:
        case "NaN" | "infinite":
            tensors[name].view(-1)[3] = float("nan" if how == "NaN" else "inf")
        case "missing":
            del tensors[name]
        case "unexpected":
            tensors["zz.extra"] = torch.ones(2)
        case "shape":
            tensors[name] = tensors[name][:-1].clone()
    if file.suffix == ".safetensors":
        save_file({k: v.clone() for k, v in tensors.items()}, file, metadata={"format": "pt"})
    else:
        torch.save(stored, file)


WHOLE = {
    "pick_score": ("pick", "model.safetensors", lambda f, file: PickScore(model=f, processor=f)),
    "hps": ("open_clip", "hps.pt", lambda f, file: Hps(model=f, path=str(file))),
    "clip_score": ("open_clip", "open_clip_pytorch_model.bin", lambda f, file: ClipScore(model=f)),
    "vlm_yes_no": ("vlm", "model.safetensors", lambda f, file: VlmYesNo(model=f, dtype="float32")),
    "judge": ("vlm", "model.safetensors", lambda f, file: TransformersVlm(model=f)),
    "nearest_neighbour": ("dino", "model.safetensors", lambda f, file: NearestNeighbour(model=f)),
    "detector": ("yolos", "model.safetensors", lambda f, file: TransformersDetector(f)),
}
"""The folder of a network, its file of weights, and the reward that loads them."""


HOWS = ("NaN", "infinite", "missing", "unexpected", "shape", "cut")
MEMBERS = [(k, h) for k in WHOLE for h in HOWS if (k, h) != ("clip_score", "shape")]
"""open_clip interpolates tables of positions, whatever their length."""


@pytest.mark.parametrize(("kind", "how"), MEMBERS)
def test_damaged_weights_are_refused_when_they_are_loaded(kind, how, folders, tmp_path):
    source, name, build = WHOLE[kind]
    folder = Path(shutil.copytree(folders(source), tmp_path / "m"))
    _spoilt(how, folder / name)
    with pytest.raises(ConfigError, match=re.escape(str(folder))):
        reward = build(str(folder), folder / name)
        reward.check()
        reward.to("cpu")


def test_whole_numbers_are_no_weights(tmp_path):
    sizes, weights = build_image_reward(tmp_path), published_image_reward(BLIP)
    weights["mlp.layers.0.weight"] = weights["mlp.layers.0.weight"].to(torch.int8)
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="head.layers.0.weight are stored as whole numbers"):
        ImageReward(**{**sizes, "path": str(tmp_path / "w.pt")}).to("cpu")


def test_damaged_weights_end_a_run_before_anything_is_sampled(folders, tiny_sd3, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(folders("open_clip"), tmp_path / "m"))
    _spoilt("NaN", folder / "hps.pt")
    use = {"kind": "hps", "model": folders("open_clip"), "path": str(folder / "hps.pt")}
    asked = []
    monkeypatch.setattr(FlowPolicy, "velocity", lambda *a, **k: asked.append(1))
    for changes in ({"rewards": {"h": {"use": use}}}, {"watch": {"h": {"use": use}}}):
        path = write_config(tmp_path, tiny_sd3, changes)
        for run in (train, evaluate):
            with pytest.raises(ConfigError, match="hps.pt: 1 of its .* NaN or infinite: "):
                run(path)
    assert not asked


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"<html>", "a web page"), (b"\x08\x07" * 99, "could not be loaded")],
)  # fmt: skip
def test_a_damaged_graph_is_refused_when_it_is_loaded(content, message, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "names.txt").write_text("cat\n")
    (tmp_path / "d.onnx").write_bytes(content)
    reward = GenEvalReward(OnnxDetector(str(tmp_path / "d.onnx"), str(tmp_path / "names.txt")))
    with pytest.raises(ConfigError, match=f"d.onnx.*{message}"):
        reward.check()
        reward.to("cpu")
