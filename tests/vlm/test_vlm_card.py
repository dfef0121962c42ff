"""The lines of the card answer as the run does: weights, processor, tokens and stops, without this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vlm import change, folder, policy, rows_of

from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.pipelines.vlm.prompting.chat import Chat
from grpo_mm.types import Prompt

ADAPTER = {"lora": Lora(rank=2)}
MEMBERS = {
    "adapter": ADAPTER,
    "adapter in bfloat16": {**ADAPTER, "dtype": "bfloat16"},
    "merged adapter": {**ADAPTER, "save_merged": True},
    "whole model": {},
    "fewer pixels": {**ADAPTER, "image_pixels": (28 * 28, 2 * 28 * 28)},
    "more pixels, whole model": {"image_pixels": (12 * 28 * 28, 20 * 28 * 28)},
    "odd system prompt": {**ADAPTER, "chat": Chat(system='say "```" in \\n\n`what` it\'s “so”')},
    "eager": {**ADAPTER, "attention": "eager"},
}


QUICK = ("adapter", "whole model", "fewer pixels", "odd system prompt")


def answers(p, tmp_path, monkeypatch, capsys) -> tuple[str, str]:
    """(what the run answers, what the lines of the card print) to a question about a picture, after training."""
    engine = VlmEngine(max_new_tokens=7, eval_max_new_tokens=12)
    change(p, scale=0.3, seed=2)
    pixels = torch.randint(0, 256, (3, 56, 84), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save("picture.png")
    (wanted,) = engine.render(p, rows_of((Prompt("q", "a question", media=(pixels,)),), 1), seed=0)
    p.save(tmp_path / "product")
    code = engine.usage(p)["code"]
    assert wanted and "`" not in code and "grpo_mm" not in code.replace(str(tmp_path), "")
    capsys.readouterr()
    exec(code.replace("path/of/this/folder", str(tmp_path / "product")), {})
    return wanted, capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MEMBERS]
)
def test_the_lines_of_the_card_answer_as_the_run(name, tmp_path, monkeypatch, capsys):
    wanted, found = answers(policy(**MEMBERS[name]), tmp_path, monkeypatch, capsys)
    assert found == wanted


def test_an_adapter_upon_a_merged_one_in_a_folder_of_any_name(tmp_path, monkeypatch, capsys):
    first, odd = policy(**ADAPTER), tmp_path / 'it\'s a "first" `adapter`\n\\ é'
    change(first, scale=0.3)
    first.save(odd)
    wanted, found = answers(policy(**ADAPTER, merge_adapter=str(odd)), tmp_path, monkeypatch, capsys)
    assert found == wanted


def test_an_adapter_upon_a_merged_file_of_older_names(tmp_path, monkeypatch, capsys):
    first, file = policy(**ADAPTER), tmp_path / "older/adapter_model.safetensors"
    change(first, scale=0.3)
    first.save(file.parent)
    settings = json.loads((file.parent / "adapter_config.json").read_text())
    (file.parent / "adapter_config.json").write_text(json.dumps(settings | {"use_rslora": True, "lora_alpha": 3}))
    stored = {name.replace("language_model.", ""): value for name, value in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    p = policy(**ADAPTER, merge_adapter=str(file))
    shutil.rmtree(file.parent)
    wanted, found = answers(p, tmp_path, monkeypatch, capsys)
    assert found == wanted


def test_settings_of_the_checkpoint_for_generation_play_no_part(tmp_path, monkeypatch, capsys):
    """Qwen2.5-VL's files ask for sampling with a penalty on repetition; the run takes neither."""
    base = Path(shutil.copytree(folder("qwen2_5_vl"), tmp_path / "base"))
    asked = {"do_sample": True, "repetition_penalty": 9.0, "temperature": 0.1, "top_k": 1, "top_p": 0.001}
    file = base / "generation_config.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | asked))
    p = VlmPolicyConfig(path=str(base)).load(torch.device("cpu"))
    wanted, found = answers(p, tmp_path, monkeypatch, capsys)
    assert found == wanted
