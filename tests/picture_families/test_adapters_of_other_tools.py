"""Adapters of other tools for newer families: what plain diffusers makes of a file is loaded whole, anything else is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.models import adapters
from grpo_mm.pipelines.flow.models.adapter_parts import adapter_parts, original_names
from grpo_mm.pipelines.flow.models.adapters import WEIGHT_NAME, Lora
from grpo_mm.registry import lookup
from grpo_mm.weights.adapter_file import read_adapter
from grpo_mm.weights.adapter_places import place

KINDS = ("qwen_image", "z_image", "flux2", "flux2_klein", "qwen_image21", "sana")
QUICK = ("z_image", "flux2_klein", "sana")


@dataclass(frozen=True)
class Model:
    kind: str
    pipe: Any
    load: Callable[[], Any]


@pytest.fixture(scope="module", params=[pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def model(request, checkpoints) -> Model:
    family = lookup("flow_model", request.param)(checkpoints[request.param])
    load = lambda: family.load(torch.float32, full=False)  # noqa: E731
    return Model(request.param, load(), load)


def pairs_of(model: Model, *, most: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> (A, B), random, of the layers that the family trains."""
    generator = torch.Generator().manual_seed(5)
    targets = lookup("flow_model", model.kind).lora_targets
    found = {}
    for name, module in model.pipe.transformer.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(targets):
            sizes = (4, module.in_features), (module.out_features, 4)
            found[name] = tuple(torch.randn(size, generator=generator) for size in sizes)
    return dict(list(found.items())[:most])


def written(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / WEIGHT_NAME)
    return folder


def added(model: Model, folder: Path) -> dict[str, Tensor]:
    """Module -> what a file adds to its weight here."""
    placed = place(read_adapter(str(folder)), adapter_parts(model.pipe))
    assert set(placed) == {"transformer"}
    return {n: pair.delta(torch.float32) for n, pair in placed["transformer"].items()}


def added_by_diffusers(model: Model, folder: Path) -> dict[str, Tensor]:
    """The same in plain diffusers, measured on the weights."""
    plain = model.load()
    plain.load_lora_weights(folder)
    plain.fuse_lora(components=["transformer"])
    plain.unload_lora_weights()
    before, after = (dict(pipe.transformer.named_parameters()) for pipe in (model.pipe, plain))
    return {
        name.removesuffix(".weight"): after[name] - before[name]
        for name in after
        if not torch.equal(after[name], before[name])
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)


def flat(name: str) -> str:
    return name.replace(".", "_")


FORMS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", str, 1.0),
    "comfy": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", str, 1.0),
    "comfy with kohya's ends and alpha": ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight", str, 0.5),
    "flat with alpha": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", flat, 0.5),
    "bare with the adapter's name": ("{}.lora_A.default.weight", "{}.lora_B.default.weight", str, 1.0),
}  # fmt: skip
NOT_IN_DIFFUSERS = {
    "comfy": ("sana",),
    "comfy with kohya's ends and alpha": ("sana", "flux2", "flux2_klein"),
    "flat with alpha": ("sana", "flux2", "flux2_klein"),
    "bare with the adapter's name": ("sana", "flux2", "flux2_klein"),
}
"""Where plain diffusers drops the file, fails on it, or leaves its alpha out, so that there is nothing to compare with."""


@pytest.mark.parametrize("form", FORMS)
def test_names_of_every_tool_find_all_layers_as_in_plain_diffusers(model, form, tmp_path):
    a, b, named, scale = FORMS[form]
    pairs, tensors = pairs_of(model), {}
    for name, (down, up) in pairs.items():
        tensors |= {a.format(named(name)): down, b.format(named(name)): up}
        if scale != 1:
            tensors[a.format(named(name)).rsplit(".lora_", 1)[0] + ".alpha"] = torch.tensor(scale * 4)
    folder = written(tmp_path / "a", tensors)
    found = added(model, folder)
    same(found, {name: scale * up @ down for name, (down, up) in pairs.items()})
    if model.kind not in NOT_IN_DIFFUSERS.get(form, ()):
        same(found, added_by_diffusers(model, folder))


ORIGINAL = {"flux2": "flux2", "flux2_klein": "flux2", "z_image": "z_image"}


def test_the_authors_layout_is_read_as_diffusers_reads_whole_weights(model, tmp_path):
    """A full weight under an original name, converted by diffusers' single-file loader, is what an adapter there means."""
    from diffusers.loaders import single_file_utils

    if model.kind not in ORIGINAL:
        assert original_names(model.pipe.transformer) == {}, "its layout is that of diffusers"
        return
    network = model.pipe.transformer
    linear = {n for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    names = {n: p for n, p in original_names(network).items() if set(p.modules) <= linear}
    names = {n: p for n, p in names.items() if not re.search(r"attention\.to\.|^sformer", n)}  # other tools' own
    generator, tensors, whole = torch.Generator().manual_seed(3), {}, {}
    for name, at in names.items():
        layers = [network.get_submodule(m) for m in at.modules]
        a = torch.randn(2, layers[0].in_features, generator=generator)
        b = torch.randn(sum(layer.out_features for layer in layers), 2, generator=generator)
        tensors |= {f"diffusion_model.{name}.lora_A.weight": a, f"diffusion_model.{name}.lora_B.weight": b}
        whole[f"{name}.weight"] = b @ a
    found = added(model, written(tmp_path / "a", tensors))
    kohya = {
        f"lora_unet_{flat(k.removeprefix('diffusion_model.').rsplit('.lora_', 1)[0])}.lora_{'down' if 'lora_A' in k else 'up'}.weight": v
        for k, v in tensors.items()
    }
    same(added(model, written(tmp_path / "b", kohya)), found)
    converted = getattr(single_file_utils, f"convert_{ORIGINAL[model.kind]}_transformer_checkpoint_to_diffusers")(
        dict(whole)
    )
    assert len(found) > 9
    same(found, {name.removesuffix(".weight"): value for name, value in converted.items()})


def test_a_file_for_another_model_is_refused_with_counts_and_nothing_is_loaded(model, tmp_path):
    pairs = pairs_of(model, most=3)
    tensors = {f"transformer.{n}.lora_{x}.weight": v for n, ab in pairs.items() for x, v in zip("AB", ab)}
    tensors |= {f"transformer.blocks.7.{x}": v for x, v in zip(("lora_A.weight", "lora_B.weight"), next(iter(pairs.values())))}  # fmt: skip
    before = {n: p.clone() for n, p in model.pipe.transformer.named_parameters()}
    with pytest.raises(ConfigError, match="1 of its 4 pairs find no layer"):
        adapters.merge(model.pipe, str(written(tmp_path / "a", tensors)))
    assert all(torch.equal(before[n], p) for n, p in model.pipe.transformer.named_parameters())


@pytest.mark.parametrize(
    ("part", "kind"), [("dora_scale", "DoRA"), ("lokr_w1", "LoKr"), ("lora_magnitude_vector", "DoRA")]
)
def test_what_is_no_lora_is_refused_by_name_where_diffusers_would_drop_a_part(model, part, kind, tmp_path):
    (name, (a, b)), *_ = pairs_of(model, most=1).items()
    tensors = {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b,
               f"transformer.{name}.{part}": torch.ones(b.shape[0])}  # fmt: skip
    with pytest.raises(ConfigError, match=kind):
        added(model, written(tmp_path / "a", tensors))


def test_an_adapter_of_another_tool_is_continued_and_read_by_plain_diffusers(model, tmp_path):
    pairs = pairs_of(model)
    a, b, named, _ = FORMS["flat with alpha"]
    tensors = {key.format(named(n)): v for n, ab in pairs.items() for key, v in zip((a, b), ab)}
    pipe = model.load()
    start = Lora(start_from=str(written(tmp_path / "a", tensors)))
    adapters.add(pipe, start, targets=("to_q",), dtype=torch.float32)
    adapters.save_adapter(pipe, tmp_path / "b")
    wanted = {f"transformer.{n}.lora_{x}.weight": v for n, ab in pairs.items() for x, v in zip("AB", ab)}
    stored = load_file(tmp_path / "b" / WEIGHT_NAME)
    assert set(stored) == set(wanted) and all(torch.equal(stored[k], v) for k, v in wanted.items())
    same(added_by_diffusers(model, tmp_path / "b"), {n: up @ down for n, (down, up) in pairs.items()})
