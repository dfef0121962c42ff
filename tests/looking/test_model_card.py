"""The code in the model card runs as it stands, without this package."""

from __future__ import annotations

import re
import sys

import pytest
from children import in_child
from tiny_runs import write_config

from grpo_mm.entry import train


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
