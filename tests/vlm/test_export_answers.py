"""What `export` writes of a vision-language run answers in plain transformers and peft as `sample` does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from grpo_mm.datasets.media.media_files import ImageFile
from grpo_mm.datasets.worlds.scene_world import SceneWorld
from grpo_mm.entry import train
from grpo_mm.tools.export import export
from grpo_mm.tools.held_out import held_out
from grpo_mm.tools.inference import sample


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One step of an adapter on the tiny model that ships."""
    folder = tmp_path_factory.mktemp("vqa")
    settings = {
        "name": "vqa", "steps": 1, "prompts_per_step": 2, "group_size": 4, "threads": 1, "device": "cpu", "seed": 3,
        "policy": {"kind": "vlm", "path": "zoo:vision_language", "lora": {"rank": 2}, "temperature": 2.0},
        "engine": {"kind": "vlm", "max_new_tokens": 16},
        "prompts": {"scenes": {"use": {"kind": "scene_world", "count": 8}}},
        "eval_prompts": {"scenes": {"use": {"kind": "scene_world", "split": "report", "count": 2}}},
        "rewards": {"letters": {"use": {"kind": "function", "path": "tiny_rewards:letters"}}},
        "objective": [{"kind": "clipped_ratio", "clip_low": 0.2, "clip_high": 0.2}],
        "optim": {"lr": 0.02}, "checkpoints": {"every": 1}, "runs_dir": str(folder / "runs"),
    }  # fmt: skip
    (folder / "vqa.yaml").write_text(yaml.safe_dump(settings))
    train(folder / "vqa.yaml")
    return folder / "runs/vqa"


@pytest.mark.parametrize("merged", [False, True])
def test_an_export_answers_as_the_run(merged, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    SceneWorld(split="report", count=1).load()[0].media[0].save("picture.png")
    made = sample(run, prompts=["a question"], media=[ImageFile("picture.png")], raw=True, out=tmp_path / "out")
    product = export(run, merged=merged, to=tmp_path / "product")
    card = (product / "README.md").read_text()
    assert (product / "adapter_config.json").is_file() != merged and ("PeftModel" in card) != merged
    assert "Answers are greedy, of at most 16 tokens." in card and "    {query}<image>Think first.\n" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    exec(code.replace("path/of/this/folder", str(product)), {})
    assert capsys.readouterr().out.removesuffix("\n") == made.answers[0][0]


def test_the_exported_adapter_is_that_of_the_checkpoint(run, tmp_path):
    found = load_file(export(run, to=tmp_path / "product") / "adapter_model.safetensors")
    stored = load_file(run / "checkpoints/step_000001/weights.safetensors")
    wanted = {f"base_model.model.{name.replace('.default', '')}": tensor for name, tensor in stored.items()}
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)
    assert any(bool(tensor.any()) for name, tensor in found.items() if "lora_B" in name)


def test_a_question_is_asked_in_the_words_of_training(run, tmp_path):
    prompt = SceneWorld(split="report", count=2).load()[1]
    prompt.media[0].save(tmp_path / "picture.png")
    media, question = [ImageFile(str(tmp_path / "picture.png"))], prompt.text.partition("<image>")[0]
    made = sample(run, prompts=[question], media=media)
    assert made.asked == [prompt.text] and made.files == [run / "samples_drawn/001/answers.json"]
    found = held_out(run)
    rows = [json.loads(line) for line in (found.folder / "predictions.jsonl").read_text().splitlines()]
    assert made.answers[0][0] == rows[1]["prediction"] and rows[1]["truth"]["answer"] == prompt.target["answer"]
    assert rows[1]["prompt"] == prompt.text and Image.open(tmp_path / "picture.png").size == (84, 84)
