"""The code in the model card runs as it stands, without this package."""

from __future__ import annotations

import re
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from children import in_child
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import write_config

from grpo_mm.entry import train
from grpo_mm.looking.model_card import write_model_card
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.tools.inference import evaluate, sample


def code_of(product) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (product / "README.md").read_text(), re.DOTALL)
    return code.replace("path/of/this/folder", str(product))


@pytest.mark.parametrize(
    ("model", "product"),
    [("sd3", "adapter"), ("flux", "model"), ("sd3", "adapter on a merged one")]
    + [
        pytest.param(*p, marks=pytest.mark.slow)
        for p in (("flux", "adapter"), ("sd3", "model"), ("flux", "adapter on a merged one"))
    ],
)
def test_the_code_of_the_card_makes_a_picture(model, product, tmp_path, request):
    path = request.getfixturevalue(f"tiny_{model}")
    engine = {"schedule": {"kind": "flux" if model == "flux" else "diffusers_sd3"}}
    policy = {"model": {"kind": model, "path": path}, "guidance": 2.0}
    changes = {"steps": 1, "eval_prompts": None, "engine": engine, "policy": policy}
    if product == "model":
        policy["lora"] = None
    if product == "adapter on a merged one":
        train(write_config(tmp_path, path, {**changes, "name": "first"}))
        policy["merge_adapter"] = str(tmp_path / "runs/first/adapter")
    summary = train(write_config(tmp_path, path, {**changes, "name": "second"}))
    code = code_of(tmp_path / "runs/second" / summary["product"])
    assert "grpo_mm" not in code.replace(str(tmp_path), "")
    assert ("fuse_lora" in code) == (product == "adapter on a merged one")
    found: dict = {}
    exec(code, found)
    assert found["image"].size == (32, 32)


def test_the_product_loads_in_a_process_that_has_no_grpo_mm(tmp_path, tiny_sd3):
    train(write_config(tmp_path, tiny_sd3, {"steps": 1, "eval_prompts": None}))
    code = code_of(tmp_path / "runs/tiny/adapter")

    def without_the_package() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "grpo_mm"]:
            del sys.modules[name]
        sys.modules["grpo_mm"] = None
        exec(code, {})

    assert in_child(without_the_package, tmp_path / "said.txt") == 0, (tmp_path / "said.txt").read_text()


def test_the_card_names_whole_paths(tmp_path, tiny_sd3, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my model").symlink_to(tiny_sd3)
    changes = {"steps": 1, "eval_prompts": None, "policy": {"model": {"path": "my model"}}}
    train(write_config(tmp_path, "my model", {**changes, "name": "first"}))
    shutil.copytree("runs/first/adapter", "before")
    train(write_config(tmp_path, "my model", changes | {"policy": {"merge_adapter": "before"}}))
    code = code_of(tmp_path / "runs/tiny/adapter")
    assert repr(str(tmp_path / "my model")) in code and "before" not in code.replace("before training", "")


ODD = {
    "a|b/mean": "a&#124;b/mean", "<script>x</script>": "&#60;script&#62;x&#60;/script&#62;", "[x](http://y)": "&#91;x&#93;",
    "`c`": "&#96;c&#96;", "two\nlines": "two lines", "_em_": "&#95;em&#95;", "shape/all_correct": "shape/all_correct",
    "\x1b[31m": "&#92;x1b&#91;31m",
}  # fmt: skip


def test_names_in_the_card_are_words(tmp_path):
    summary = {
        "name": "# <b>run</b>", "steps": 1, "eval_before": {}, "versions": {"grpo_mm": "0.2"},
        "eval_after": {name: 1e308 if i else None for i, name in enumerate(ODD)} | {"n" * 9000: 0.5},
    }  # fmt: skip
    usage = {"base_model": "/home/someone/secret place/my *model*", "library": "diffusers", "code": "pass"}
    text = write_model_card(tmp_path, summary, usage=usage).read_text()
    head, _, table = text.partition("| --- | --- | --- |\n")
    rows = table.strip().splitlines()
    assert all(row.count("|") == 4 and len(row) < 600 for row in rows) and len(rows) == len(ODD) + 1
    for row, wanted in zip(rows, ODD.values()):
        assert wanted in row
    assert "<" not in text and "someone" not in text and "my &#42;model&#42;" in head and "\x1b" not in text
    assert yaml.safe_load(head.split("---")[1]) == {
        "library_name": "diffusers",
        "tags": ["text-to-image", "grpo", "grpo_mm"],
    }


def test_one_figure_under_several_names_stands_once_and_the_gain_has_its_error(tmp_path):
    before = {"score": 0.25, "shape/mean": 0.25, "quality/score": 3.5, "quality/sharpness": 3.5, "shape/extras": 1.0}
    summary = {
        "name": "x", "steps": 1, "eval_before": before, "eval_after": {name: value + 0.5 for name, value in before.items()},
        "verdict": {"verdict": "better", "sentence": "Better: held-out score 0.25 → 0.75 (+0.500 ± 0.006, 288 prompts)."},
    }  # fmt: skip
    usage = {"base_model": "o/n", "library": "diffusers", "code": "pass"}
    rows = (
        write_model_card(tmp_path, summary, usage=usage).read_text().partition("| --- | --- | --- |\n")[2].splitlines()
    )
    assert rows[:3] == [
        "| score = shape/mean | 0.2500 | 0.7500 |",
        "| quality/score = quality/sharpness | 3.5000 | 4.0000 |",
        "| shape/extras | 1.0000 | 1.5000 |",
    ]
    assert "± 0.006, 288 prompts" in rows[4]
    assert "288 prompts" not in write_model_card(tmp_path, summary | {"verdict": None}, usage=usage).read_text()


@pytest.mark.parametrize(
    ("base", "named"), [("owner/name", True), ("owner/na me", False), ("o/n: [x", False), ("a/b\nx: y", False)]
)
def test_only_names_of_the_hub_stand_in_the_front_matter(base, named, tmp_path):
    summary = {"name": "x", "steps": 1, "eval_before": {}, "eval_after": {}}
    usage = {"base_model": base, "library": "peft", "code": "pass"}
    front = yaml.safe_load(write_model_card(tmp_path, summary, usage=usage).read_text().split("---")[1])
    assert front.get("base_model") == (base if named else None) and set(front) <= {"library_name", "tags", "base_model"}


def pictures(code: str, latents) -> np.ndarray:
    found: dict = {"latents": latents}
    exec(code.replace('pipe("a prompt",', 'pipe("a red circle", latents=latents, output_type="np",'), found)
    return np.round(found["image"] * 255)


GRIDS = {"own": None, "shifted": {"kind": "shifted", "shift": 5.0}, "flux": {"kind": "flux"}}


@pytest.mark.parametrize(
    ("grid", "kind"),
    [("own", "sd3"), ("shifted", "sd3")]
    + [pytest.param(*p, marks=pytest.mark.slow) for p in (("flux", "sd3"), ("own", "flux"), ("shifted", "flux"))],
)
def test_the_lines_of_the_card_draw_the_picture_of_sample(grid, kind, tmp_path, request):
    odd = tmp_path / 'the "best" `m\'odel`\n\\ é'
    pipeline = StableDiffusion3Pipeline if kind == "sd3" else FluxPipeline
    pipeline.from_pretrained(request.getfixturevalue(f"tiny_{kind}")).save_pretrained(odd, variant="fp16")
    policy = {"model": {"kind": kind, "path": str(odd), "variant": "fp16"}, "guidance": 3.0}
    ema = {"decay": 0.9, "every_updates": 1, "warm_up": False, "evaluate": grid != "own"}
    changes = {"policy": policy, "engine": {"schedule": GRIDS[grid]}, "optim": {"lr": 0.02}, "ema": ema}
    summary = train(write_config(tmp_path, str(odd), changes))
    run = tmp_path / "runs/tiny"
    (made,) = sample(run, prompts=["a red circle"], out=tmp_path / "made").files
    found = pictures(code_of(run / summary["product"]), load_file(tmp_path / "made/latents.safetensors")["latents"])
    assert np.abs(found - np.asarray(Image.open(made)).astype(float)).max() <= 1  # two roundings of one float32 picture
    assert evaluate(run)["eval/score"] == pytest.approx(summary["eval_after"]["score"], abs=1e-7)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_lines_draw_upon_an_adapter_of_another_tool_that_was_merged(kind, tmp_path, request):
    """Names that plain diffusers does not read, an alpha beside each pair, and a part for the text encoder."""
    path, tensors = request.getfixturevalue(f"tiny_{kind}"), {}
    pipe = {"sd3": Sd3, "flux": Flux}[kind](path).load(torch.float32, full=False)
    generator = torch.Generator().manual_seed(3)
    for prefix, network, endings in (
        ("lora_unet_", pipe.transformer, ("attn.to_q", "attn.to_out.0")),
        ("lora_te1_", pipe.text_encoder, ("q_proj",)),
    ):
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(endings):
                at = prefix + name.replace(".", "_")
                tensors[f"{at}.lora_down.weight"] = torch.randn(2, module.in_features, generator=generator)
                tensors[f"{at}.lora_up.weight"] = torch.randn(module.out_features, 2, generator=generator)
                tensors[f"{at}.alpha"] = torch.tensor(0.6)
    save_file(tensors, tmp_path / "of_another_tool.safetensors")
    policy = {"model": {"kind": kind, "path": path}, "merge_adapter": str(tmp_path / "of_another_tool.safetensors")}
    changes = {"policy": {**policy, "guidance": 3.0}, "optim": {"lr": 0.02}}
    summary = train(write_config(tmp_path, path, changes))
    run = tmp_path / "runs/tiny"
    (made,) = sample(run, prompts=["a red circle"], out=tmp_path / "made").files
    (tmp_path / "of_another_tool.safetensors").unlink()  # what a run leaves needs nothing of it
    code = code_of(run / summary["product"])
    found = pictures(code, load_file(tmp_path / "made/latents.safetensors")["latents"])
    wanted = np.asarray(Image.open(made)).astype(float)
    assert np.abs(found - wanted).max() <= 1
    without = re.sub(r"pipe.load_lora_weights\(.*# was merged.*\n.*\n.*\n", "", code)
    assert np.abs(pictures(without, load_file(tmp_path / "made/latents.safetensors")["latents"]) - wanted).max() > 1
