"""Adapters for SD3 and FLUX from files of many tools: each layer gets its factors at the scale they mean, or the file is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.models import adapters
from grpo_mm.pipelines.flow.models.adapter_parts import adapter_parts, original_names
from grpo_mm.pipelines.flow.models.adapters import WEIGHT_NAME, Lora
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.weights.adapter_file import check_adapter, read_adapter
from grpo_mm.weights.adapter_places import place

Pairs = dict[str, tuple[Tensor, Tensor]]
FAMILY = {"sd3": Sd3, "flux": Flux}


@pytest.fixture(scope="module", params=["sd3", "flux"])
def model(request) -> SimpleNamespace:
    """A pipeline, for looking at, and how to load another."""
    path = request.getfixturevalue(f"tiny_{request.param}")
    family = FAMILY[request.param](path)
    pipe = family.load(torch.float32, full=False)
    return SimpleNamespace(
        kind=request.param, pipe=pipe, load=lambda **s: family.load(torch.float32, full=False, **s), path=path
    )


def factors(
    model, endings=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"), *, part="transformer", rank=4
) -> Pairs:
    """Module → (A, B), random, for the layers of a part whose names end so."""
    generator = torch.Generator().manual_seed(5)
    layers = {
        n: m
        for n, m in getattr(model.pipe, part).named_modules()
        if isinstance(m, torch.nn.Linear) and n.endswith(endings)
    }
    return {
        n: (
            torch.randn(rank, m.in_features, generator=generator),
            torch.randn(m.out_features, rank, generator=generator),
        )
        for n, m in layers.items()
    }


def deltas(model, file: Path) -> dict[str, dict[str, Tensor]]:
    """Part → module → what the file adds to its weight."""
    placed = place(read_adapter(str(file)), adapter_parts(model.pipe))
    return {part: {n: pair.delta(torch.float32) for n, pair in pairs.items()} for part, pairs in placed.items()}


def by_hand(pairs: Pairs, scale=lambda name: 1.0) -> dict[str, Tensor]:
    return {name: scale(name) * b @ a for name, (a, b) in pairs.items()}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def written(folder: Path, tensors: dict[str, Tensor], *, name=WEIGHT_NAME, metadata=None, config=None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / name, metadata=metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def named(pairs: Pairs, a: str, b: str, module=lambda name: name) -> dict[str, Tensor]:
    """`a` and `b`: the whole names, with {} for the module."""
    return {key.format(module(n)): value for n, pair in pairs.items() for key, value in zip((a, b), pair)}


def flat(name: str) -> str:
    return name.replace(".", "_")


def processor(name: str) -> str:
    """transformer_blocks.0.attn.to_out.0 → transformer_blocks.0.attn.processor.to_out"""
    module, layer = re.fullmatch(r"(.+)\.(to_\w+)(?:\.0)?", name).groups()
    return f"{module}.processor.{layer}"


FORMATS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", str),
    "older diffusers": ("transformer.{}.lora.down.weight", "transformer.{}.lora.up.weight", str),
    "kohya dotted": ("transformer.{}.lora_down.weight", "transformer.{}.lora_up.weight", str),
    "attention processors": ("transformer.{}_lora.down.weight", "transformer.{}_lora.up.weight", processor),
    "bare": ("{}.lora_A.weight", "{}.lora_B.weight", str),
    "bare with the adapter's name": ("{}.lora_A.default.weight", "{}.lora_B.default.weight", str),
    "comfy": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", str),
    "comfy with kohya's ends": ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight", str),
    "flat": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", flat),
    "flat for a transformer": ("lora_transformer_{}.lora_A.weight", "lora_transformer_{}.lora_B.weight", flat),
    "lycoris": ("lycoris_{}.lora_down.weight", "lycoris_{}.lora_up.weight", flat),
    "checkpointed": ("transformer._checkpoint_wrapped_module.{}.lora_A.weight", "transformer._checkpoint_wrapped_module.{}.lora_B.weight", str),
    "compiled": ("transformer._orig_mod.{}.lora_A.weight", "transformer._orig_mod.{}.lora_B.weight", str),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_names_of_every_tool_find_the_layers(model, form, tmp_path):
    pairs = factors(model)
    folder = written(tmp_path / "a", named(pairs, *FORMATS[form]))
    same(deltas(model, folder)["transformer"], by_hand(pairs))


@pytest.mark.parametrize("ending", ["default.weight", "weight"])
@pytest.mark.parametrize(
    ("settings", "scale"), [({"lora_alpha": 2}, 0.5), ({"lora_alpha": 2, "use_rslora": True}, 1.0)]
)
def test_names_of_peft_come_with_the_alpha_of_the_settings_beside(model, ending, settings, scale, tmp_path):
    pairs = factors(model)
    tensors = named(pairs, f"base_model.model.{{}}.lora_A.{ending}", f"base_model.model.{{}}.lora_B.{ending}")
    config = {"peft_type": "LORA", "r": 4, "target_modules": list(pairs)} | settings
    folder = written(tmp_path / "a", tensors, name="adapter_model.safetensors", config=config)
    for where in (folder, folder / "adapter_model.safetensors"):
        same(deltas(model, where)["transformer"], by_hand(pairs, lambda _: scale))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match="alpha stands in adapter_config.json"):
        read_adapter(str(folder))


def test_torch_files_are_read_as_well(model, tmp_path):
    pairs = factors(model)
    torch.save(named(pairs, *FORMATS["diffusers"]), tmp_path / "some_lora.pt")
    same(deltas(model, tmp_path / "some_lora.pt")["transformer"], by_hand(pairs))


def test_an_adapter_in_several_files_is_whole_or_refused(model, tmp_path):
    pairs = factors(model)
    tensors = list(named(pairs, *FORMATS["diffusers"]).items())
    for i in (1, 2):
        written(tmp_path / "a", dict(tensors[i - 1 :: 2]), name=f"my_lora-0000{i}-of-00002.safetensors")
    for path in (tmp_path / "a", tmp_path / "a/my_lora-00002-of-00002.safetensors"):
        same(deltas(model, path)["transformer"], by_hand(pairs))
    (tmp_path / "a/my_lora-00001-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match="my_lora-00001-of-00002.safetensors is missing"):
        read_adapter(str(tmp_path / "a"))


@pytest.mark.parametrize("form", ["diffusers", "flat"])
def test_each_layer_has_its_own_rank_and_alpha(model, form, tmp_path):
    pairs = factors(model)
    pairs |= {n: (a[:2], b[:, :2]) for n, (a, b) in list(pairs.items())[1::2]}
    a, b, module = FORMATS[form]
    alpha = {n: (1.0, 2.0, 8.0)[i % 3] for i, n in enumerate(pairs)}
    tensors = named(pairs, a, b, module)
    wanted = by_hand(pairs, lambda n: alpha[n] / len(pairs[n][0]))
    beside = {a.format(module(n)).rsplit(".lora_", 1)[0] + ".alpha": torch.tensor(v) for n, v in alpha.items()}
    same(deltas(model, written(tmp_path / "a", tensors | beside))["transformer"], wanted)
    same(deltas(model, written(tmp_path / "b", tensors))["transformer"], by_hand(pairs))  # no alpha: a scale of 1
    if form == "diffusers":
        patterns = {
            "rank_pattern": {n: len(p[0]) for n, p in pairs.items()},
            "alpha_pattern": alpha,
            "r": 4,
            "lora_alpha": 4,
        }
        said = {f"transformer.{key}": value for key, value in patterns.items()}
        metadata = {"lora_adapter_metadata": json.dumps(said)}
        same(deltas(model, written(tmp_path / "c", tensors, metadata=metadata))["transformer"], wanted)


# ── the authors' own layouts ──


def test_the_authors_layout_is_read_as_diffusers_reads_it(model, tmp_path):
    """A full weight under an original name, converted by diffusers' single-file loader, is what an adapter there means."""
    from diffusers.loaders import single_file_utils

    network = model.pipe.transformer
    names = {n: p for n, p in original_names(network).items() if "processor." not in n}
    names = {n: p for n, p in names.items() if all(m in dict(network.named_modules()) for m in p.modules)}
    generator, tensors, whole = torch.Generator().manual_seed(3), {}, {}
    for name, at in names.items():
        layers = [network.get_submodule(m) for m in at.modules]
        a = torch.randn(2, layers[0].in_features, generator=generator)
        b = torch.randn(sum(layer.out_features for layer in layers), 2, generator=generator)
        tensors |= {f"diffusion_model.{name}.lora_A.weight": a, f"diffusion_model.{name}.lora_B.weight": b}
        whole |= {f"{name}.weight": b @ a, f"{name}.bias": torch.zeros(len(b))}
    found = deltas(model, written(tmp_path / "a", tensors))["transformer"]
    same(deltas(model, written(tmp_path / "b", {_as_kohya(k): v for k, v in tensors.items()}))["transformer"], found)
    if model.kind == "flux":  # the converter is written for the full size here
        fused = [found[f"single_transformer_blocks.0.{m}"] for m in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        torch.testing.assert_close(torch.cat(fused), whole["single_blocks.0.linear1.weight"])
        whole |= {
            "single_blocks.0.linear1.weight": torch.zeros(21504, 1),
            "single_blocks.0.linear1.bias": torch.zeros(21504),
        }
    convert = getattr(single_file_utils, f"convert_{model.kind}_transformer_checkpoint_to_diffusers")
    whole |= {"context_embedder.weight": torch.zeros(16, 32), "context_embedder.bias": torch.zeros(16)}
    converted = convert(_Filled(whole))
    compared = [n for n in found if model.kind == "sd3" or not re.search(r"^single.*(to_[qkv]|proj_mlp)", n)]
    assert len(compared) > 15
    for name in compared:
        torch.testing.assert_close(converted[f"{name}.weight"], found[name], rtol=1e-5, atol=1e-5, msg=name)


def _as_kohya(key: str) -> str:
    module, factor = key.removeprefix("diffusion_model.").rsplit(".lora_", 1)
    return f"lora_unet_{flat(module)}.lora_{'down' if factor[0] == 'A' else 'up'}.weight"


class _Filled(dict):
    """Tensors that no adapter has (norms, positions) are there when they are asked for."""

    def pop(self, key, *default):
        return super().pop(key) if key in self else torch.zeros(16)


@pytest.mark.parametrize("end", ["1", "2", ""])
def test_adapters_of_xlabs_are_split(model, end, tmp_path):
    if model.kind != "flux":
        pytest.skip("FLUX alone has them")
    block, ours = (
        ("single_blocks", "single_transformer_blocks") if end == "" else ("double_blocks", "transformer_blocks")
    )
    names = [f"add_{x}_proj" for x in "qkv"] if end == "2" else [f"to_{x}" for x in "qkv"]
    width = model.pipe.transformer.get_submodule(f"{ours}.0.attn.to_q").in_features
    a, b = torch.randn(2, width), torch.randn(3 * width, 2)
    key = f"{block}.0.processor.qkv_lora{end}"
    found = deltas(model, written(tmp_path / "a", {f"{key}.down.weight": a, f"{key}.up.weight": b}))["transformer"]
    same(found, {f"{ours}.0.attn.{n}": part @ a for n, part in zip(names, b.chunk(3))})


# ── text encoders ──


@pytest.mark.parametrize(
    ("a", "b", "module"),
    [
        ("text_encoder.{}.lora_A.weight", "text_encoder.{}.lora_B.weight", str),
        ("text_encoder.{}.lora_linear_layer.down.weight", "text_encoder.{}.lora_linear_layer.up.weight", str),
        ("text_encoder.text_model.{}.lora_A.weight", "text_encoder.text_model.{}.lora_B.weight", lambda n: n.removeprefix("text_model.")),
        ("lora_te1_{}.lora_down.weight", "lora_te1_{}.lora_up.weight", flat),
        ("lora_te1_text_model_{}.lora_down.weight", "lora_te1_text_model_{}.lora_up.weight", lambda n: flat(n.removeprefix("text_model."))),
        ("text_encoders.clip_l.transformer.{}.lora_A.weight", "text_encoders.clip_l.transformer.{}.lora_B.weight", str),
    ],
)  # fmt: skip
def test_the_part_for_the_text_encoder_is_merged_and_not_continued(model, a, b, module, tmp_path):
    words = factors(model, ("q_proj", "v_proj"), part="text_encoder")
    tensors = named(factors(model), *FORMATS["diffusers"]) | named(words, a, b, module)
    folder = written(tmp_path / "a", tensors)
    same(deltas(model, folder)["text_encoder"], by_hand(words))
    with pytest.raises(ConfigError, match="part for text_encoder, which this policy does not train. Merge it"):
        adapters.add(model.pipe, Lora(start_from=str(folder)), targets=("attn.to_q",), dtype=torch.float32)


def test_a_part_that_plain_diffusers_leaves_out_is_refused(model, tmp_path):
    name = "text_encoder_3" if model.kind == "sd3" else "text_encoder_2"
    words = factors(model, ("SelfAttention.q",), part=name)
    for a, module in ((f"{name}.{{}}", str), ("lora_te3_{}", flat)):
        folder = written(tmp_path / "a", named(words, f"{a}.lora_A.weight", f"{a}.lora_B.weight", module))
        with pytest.raises(ConfigError, match=f"is for {name}: plain diffusers does not load"):
            deltas(model, folder)


def test_a_merged_adapter_is_what_plain_diffusers_fuses(model, tmp_path):
    tensors = named(factors(model), *FORMATS["diffusers"])
    tensors |= named(
        factors(model, ("q_proj", "v_proj"), part="text_encoder"),
        "text_encoder.{}.lora_A.weight",
        "text_encoder.{}.lora_B.weight",
    )
    folder = written(tmp_path / "a", tensors)
    ours, plain = model.load(), model.load()
    adapters.merge(ours, str(folder))
    plain.load_lora_weights(folder)
    plain.fuse_lora(components=["transformer", "text_encoder"])
    plain.unload_lora_weights()
    for part in ("transformer", "text_encoder"):
        found, wanted = getattr(ours, part).state_dict(), getattr(plain, part).state_dict()
        assert set(found) == set(wanted)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


# ── continuing ──


def test_what_is_continued_is_stored_again_and_loads_into_plain_diffusers(model, tmp_path):
    """Other layers than the usual ones, ranks and alphas that differ: kept to the last digit, there and back."""
    pairs = factors(model, ("attn.to_q", "attn.to_out.0", "ff.net.2", "norm_out.linear"))
    pairs |= {n: (a[:2], b[:, :2]) for n, (a, b) in list(pairs.items())[::2]}
    alpha = {n: (1.0, 2.0, 8.0)[i % 3] for i, n in enumerate(pairs)}
    beside = {f"lora_unet_{flat(n)}.alpha": torch.tensor(v) for n, v in alpha.items()}
    folder = written(tmp_path / "a", named(pairs, *FORMATS["flat"]) | beside)
    pipe = model.load()
    adapters.add(pipe, Lora(start_from=str(folder)), targets=("attn.to_q",), dtype=torch.float32)
    trained = {n: p for n, p in pipe.transformer.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(pairs)
    adapters.save_adapter(pipe, tmp_path / "b")
    stored = load_file(tmp_path / "b" / WEIGHT_NAME)
    wanted = named(pairs, *FORMATS["diffusers"])
    assert set(stored) == set(wanted) and all(torch.equal(stored[k], v) for k, v in wanted.items())
    same(deltas(model, tmp_path / "b")["transformer"], by_hand(pairs, lambda n: alpha[n] / len(pairs[n][0])))
    plain = model.load()
    plain.load_lora_weights(tmp_path / "b")
    layers = {n: m for n, m in plain.transformer.named_modules() if hasattr(m, "lora_A")}
    assert set(layers) == set(pairs)
    for name, layer in layers.items():
        (adapter,) = layer.lora_A
        assert torch.equal(layer.lora_A[adapter].weight, pairs[name][0]) and torch.equal(
            layer.lora_B[adapter].weight, pairs[name][1]
        )
        assert layer.scaling[adapter] == alpha[name] / len(pairs[name][0])


# ── refused by name ──


def _spoil_nothing(tensors):
    return tensors


def _renamed(old, new):
    return lambda t: {k.replace(old, new): v for k, v in t.items()}


REFUSED = {
    "a layer of another model": (_renamed("transformer_blocks.0", "transformer_blocks.7"), "find no layer in .*blocks.7"),
    "another tool": (_renamed("transformer.", "net."), "find no layer in .*net."),
    "half a pair": (lambda t: dict(list(t.items())[1:]), "factors are missing of .*without A"),
    "NaN": (lambda t: {k: v * torch.nan if i == 0 else v for i, (k, v) in enumerate(t.items())}, "NaN or infinite"),
    "another width": (lambda t: {k: v[:, :-1] if "lora_A" in k else v for k, v in t.items()}, r"A \[4, 15\] .* has \[\d+, 16\]"),
    "another height": (lambda t: {k: v[:-1] if "lora_B" in k else v for k, v in t.items()}, r"B \[15, 4\], .* has \[16, 16\]"),
    "other ranks in a pair": (lambda t: {k: v[:2] if "lora_A" in k else v for k, v in t.items()}, r"A \[2, 16\] and B \[16, 4\]"),
    "a convolution": (lambda t: {k: v[..., None, None] for k, v in t.items()}, "as for a linear layer"),
    "whole numbers": (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "torch.int8"),
    "DoRA": (lambda t: t | {"transformer.x.lora_magnitude_vector": torch.ones(3)}, "DoRA"),
    "DoRA of kohya": (lambda t: t | {"transformer.x.dora_scale": torch.ones(3)}, "DoRA"),
    "LoKr": (lambda t: {"transformer.x.lokr_w1": torch.ones(3, 3)}, "LoKr"),
    "LoHa": (lambda t: {"transformer.x.hada_w1_a": torch.ones(3, 3)}, "LoHa"),
    "a bias": (lambda t: t | {"transformer.x.lora_B.bias": torch.ones(3)}, "beyond A and B"),
    "a norm beside": (lambda t: t | {"transformer.transformer_blocks.0.norm1.linear.weight": torch.ones(3)}, "norm1.linear.weight hold nothing"),
    "a difference": (lambda t: t | {"diffusion_model.x.diff": torch.ones(3)}, "a whole weight"),
    "rank 0": (lambda t: {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in t.items()}, "have rank 0"),
    "embeddings": (lambda t: t | {"bundle_emb.word.clip_l": torch.ones(1, 16)}, "embeddings of own words"),
    "nothing": (lambda t: {}, "holds no tensor"),
    "alpha of 0": (lambda t: t | {f"{n}.alpha": torch.tensor(0.0) for n in {k.rsplit(".lora_", 1)[0] for k in t}}, "alpha .* is 0"),
    "alpha NaN": (lambda t: t | {f"{n}.alpha": torch.tensor(torch.nan) for n in {k.rsplit(".lora_", 1)[0] for k in t}}, "alpha"),
    "alpha alone": (lambda t: t | {"transformer.x.alpha": torch.tensor(1.0)}, "factors are missing of transformer.x"),
    "two for one layer": (lambda t: t | {k.removeprefix("transformer."): v for k, v in t.items()}, "two of its pairs"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_taken_whole_is_refused_with_the_file_and_the_name(model, how, tmp_path):
    spoil, message = REFUSED[how]
    tensors = named(factors(model, ("attn.to_q",)), *FORMATS["diffusers"])
    folder = written(tmp_path / "a", spoil(tensors))
    with pytest.raises(ConfigError, match=message) as refused:
        deltas(model, folder)
    assert WEIGHT_NAME in str(refused.value)


SETTINGS = {
    "a layer is left out": (
        {"target_modules": ["to_q", "proj_out"]},
        "name .* layers of transformer that it has no pair",
    ),
    "another rank": ({"r": 8}, "has rank 4, and 8 by the settings"),
    "DoRA": ({"use_dora": True}, "'use_dora' = True is not done here"),
    "biases": ({"bias": "all"}, "'bias' = 'all' is not done here"),
    "whole modules": ({"modules_to_save": ["norm"]}, "modules_to_save"),
    "a start taken off the base": ({"init_lora_weights": "pissa"}, "taken off the base"),
    "another kind": ({"peft_type": "LOHA"}, "of the kind 'LOHA'"),
    "an option of later versions": ({"a_later_option": 3}, "is not known to the installed peft"),
    "an alpha that is no number": ({"lora_alpha": "four"}, "lora_alpha = 'four'"),
}


@pytest.mark.parametrize("how", SETTINGS)
def test_settings_that_mean_another_thing_are_refused(model, how, tmp_path):
    settings, message = SETTINGS[how]
    said = {
        "transformer." + k: v
        for k, v in ({"r": 4, "lora_alpha": 4, "target_modules": ["attn.to_q"]} | settings).items()
    }
    tensors = named(factors(model, ("attn.to_q",)), *FORMATS["diffusers"])
    folder = written(tmp_path / "a", tensors, metadata={"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(ConfigError, match=message):
        deltas(model, folder)


def test_options_of_later_versions_that_are_off_do_no_harm(model, tmp_path):
    said = {
        "transformer.r": 4,
        "transformer.lora_alpha": 8,
        "transformer.a_later_option": None,
        "transformer.another": False,
        "transformer.lora_dtype": "float32",
        "transformer.lorap_emb_lr": 1e-6,
    }
    pairs = factors(model, ("attn.to_q",))
    folder = written(
        tmp_path / "a", named(pairs, *FORMATS["diffusers"]), metadata={"lora_adapter_metadata": json.dumps(said)}
    )
    same(deltas(model, folder)["transformer"], by_hand(pairs, lambda _: 2.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"), (b"\x08\x00\x00\x00\x00\x00\x00\x00{\"a\":1", "safetensors"), (b"hello there", "safetensors"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_before_a_model_is_loaded(content, message, tmp_path):
    (tmp_path / WEIGHT_NAME).write_bytes(content)
    for path in (tmp_path, tmp_path / WEIGHT_NAME):
        with pytest.raises(ConfigError, match=message) as refused:
            check_adapter(str(path))
        assert WEIGHT_NAME in str(refused.value)
