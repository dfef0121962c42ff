"""A checkpoint that is not whole is refused with the part's name, whatever the libraries make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.models.sd3 import Sd3


def _tensors(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def _first(tensors: dict, ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


def _index(folder: Path, **values) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


NET, WORDS = "transformer/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"
SPOILED = {
    "transformer lacks a tensor": (lambda f: _tensors(f / NET, lambda t: t.pop("proj_out.weight")), "transformer"),
    "transformer has one more": (lambda f: _tensors(f / NET, lambda t: t.update(extra=torch.ones(2))), "transformer"),
    "transformer has another shape": (
        lambda f: _tensors(f / NET, lambda t: t.update({"proj_out.weight": torch.ones(2, 2)})),
        "transformer",
    ),
    "encoder lacks a tensor": (lambda f: _tensors(f / WORDS, lambda t: t.pop(_first(t, "q_proj.weight"))), "text_encoder_2"),
    "encoder is cut": (lambda f: (f / WORDS).write_bytes((f / WORDS).read_bytes()[:900]), "text_encoder_2"),
    "encoder is a pointer": (lambda f: (f / WORDS).write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "decoder is empty": (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b""), "vae"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer"),
    "no vocabulary": (lambda f: (f / "tokenizer_3/tokenizer.json").unlink(), "tokenizer_3"),
    "no config": (lambda f: (f / "text_encoder/config.json").unlink(), "text_encoder"),
    "config is a list": (lambda f: (f / "transformer/config.json").write_text("[]"), "transformer"),
    "an encoder is null": (lambda f: _index(f, text_encoder=[None, None], tokenizer=[None, None]), "without text_encoder"),
    "T5 without its tokenizer": (lambda f: _index(f, tokenizer_3=[None, None]), "without tokenizer_3"),
    "a class of elsewhere": (lambda f: _index(f, text_encoder=["os", "system"]), "'text_encoder'"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_an_incomplete_checkpoint_is_refused_by_the_name_of_the_part(how, tiny_sd3, tmp_path):
    spoil, word = SPOILED[how]
    folder = Path(shutil.copytree(tiny_sd3, tmp_path / "m"))
    spoil(folder)
    with pytest.raises(ConfigError, match=word):
        Sd3(str(folder)).load(torch.float32, full=False)


def test_a_variant_that_is_not_there_is_refused(tiny_sd3):
    with pytest.raises(ConfigError, match="variant = fp16"):
        Sd3(tiny_sd3, variant="fp16").load(torch.float32, full=False)
