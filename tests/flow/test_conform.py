"""`grpo-mm conform`: every family agrees with its plain pipeline, and each planted mistake is named by its row."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from tiny_edits import BUILDERS as EDITS
from tiny_families import build_flux2_klein
from tiny_models import build_sd3
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.findings import as_table, first_difference
from grpo_mm.pipelines.flow.conforming import conform as conforming
from grpo_mm.pipelines.flow.conforming.conform import conform
from grpo_mm.pipelines.flow.models import adapters
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.flux2 import Flux2, Flux2Klein
from grpo_mm.pipelines.flow.models.qwen_image import QwenImage
from grpo_mm.pipelines.flow.models.qwen_image21 import QwenImage21
from grpo_mm.pipelines.flow.models.sana import Sana
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.models.z_image import ZImage
from grpo_mm.pipelines.flow.own_schedule import OfCheckpoint
from grpo_mm.pipelines.flow.schedule import shift_sigmas
from grpo_mm.registry import entries, load
from grpo_mm.tools.conform import kind_of_checkpoint

FAMILIES = {
    "sd3": Sd3,
    "flux": Flux,
    "qwen_image": QwenImage,
    "z_image": ZImage,
    "flux2": Flux2,
    "flux2_klein": Flux2Klein,
    "qwen_image21": QwenImage21,
    "sana": Sana,
}
CLIPS = ("wan", "wan_i2v")
SLOW = ("guidance not renormalised", "1 - σ", "template left out", "height for width", "mean of the autoencoder forgotten",
        "adapter on other layers", "velocity of the other sign", "embedded guidance dropped")  # fmt: skip
"""Mistakes whose row another one tries as well."""


def test_every_family_is_tried_here():
    """Those that edit are tried in tests/editing, those that draw clips in tests/clips."""
    found = {entry.kind: load(entry.target) for entry in entries("flow_model")}
    elsewhere = {*EDITS, *CLIPS} - set(FAMILIES)
    assert {kind: family for kind, family in found.items() if kind not in elsewhere} == FAMILIES


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """The plain pipeline of a checkpoint says the same every time."""
    said: dict = {}
    own = conforming._drawn

    def drawn(family, folder, how, dtype, device, *, adapter=None, along=None):
        if adapter is not None:
            return own(family, folder, how, dtype, device, adapter=adapter, along=along)
        if folder not in said:
            said[folder] = own(family, folder, how, dtype, device)
        return said[folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conforming, "_drawn", drawn)
        yield


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_agrees_with_its_plain_pipeline(kind, checkpoints):
    assert kind_of_checkpoint(checkpoints[kind]) == kind
    findings = list(conform(FAMILIES[kind](checkpoints[kind]), dtype="float32", device=torch.device("cpu")))
    assert first_difference(findings) is None, as_table(findings)
    names = [finding.name for finding in findings]
    assert {"σ", "guided velocity", "whole drawing", "packing of latents", "picture, levels of 255"} <= set(names)
    assert any(name.startswith("text states") for name in names) and "adapter: merged" in names
    assert sum(name.endswith("replay") for name in names) == 4


def test_klein_is_guided_unless_it_is_distilled(tmp_path, checkpoints):
    (tmp_path / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline", "is_distilled": true}')
    rows = {path: Flux2Klein(path).network_rows(4.0) for path in (str(tmp_path), checkpoints["flux2_klein"])}
    assert list(rows.values()) == [1, 2]
    assert Flux2Klein("black-forest-labs/FLUX.2-klein-4B").is_distilled
    assert not Flux2Klein("black-forest-labs/FLUX.2-klein-base-4B").is_distilled


@pytest.mark.slow
def test_a_distilled_klein_agrees_with_its_plain_pipeline(tmp_path):
    build_flux2_klein(tmp_path, is_distilled=True)
    family = Flux2Klein(str(tmp_path))
    findings = list(conform(family, dtype="float32", device=torch.device("cpu")))
    assert first_difference(findings) is None, as_table(findings)


@pytest.mark.slow
def test_sd35_large_agrees_with_its_plain_pipeline(tmp_path):
    """It has no layers with two attentions, and its checkpoint comes without T5 at times."""
    build_sd3(tmp_path, dual=0)
    findings = list(conform(Sd3(str(tmp_path)), dtype="float32", device=torch.device("cpu")))
    assert first_difference(findings) is None, as_table(findings)


# ── planted mistakes ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Mistake:
    kind: str
    row: str
    """By which the table names it, the start of the name."""
    of: type
    """The class with the mistake in it, instead of the family's own."""
    around: object = None
    """What else is changed meanwhile: a context manager."""


def mistaken(base: type, **methods) -> type:
    return type(base.__name__, (base,), methods)


def velocity_of(base: type, change) -> type:
    """Another `velocity`: change(call, x, sigma, condition) with the family's own to call."""
    original = base.velocity

    def velocity(self, pipe, x, sigma, condition, *, guidance, size):
        def call(x=x, sigma=sigma, condition=condition, guidance=guidance, size=size):
            return original(self, pipe, x, sigma, condition, guidance=guidance, size=size)

        return change(call, x, sigma, condition)

    return mistaken(base, velocity=velocity)


def encoded(base: type, change) -> type:
    def encode(self, pipe, text, *, text_length, guidance):
        return change(base.encode, self, pipe, text, text_length, guidance)

    return mistaken(base, encode=encode)


def transposed(self, pipe, latents, *, size):
    """Decodes height for width."""
    return Flux.decode(self, pipe, latents, size=size[::-1]).transpose(-1, -2)


def other_channels(self, pipe, latents, *, size):
    """Packs the four of a token before the channels."""
    n, tokens, channels = latents.shape
    return QwenImage.decode(
        self, pipe, latents.view(n, tokens, 4, channels // 4).transpose(2, 3).reshape(latents.shape), size=size
    )


def no_scale(self, pipe, latents, *, size):
    return pipe.vae.decode(latents, return_dict=False)[0]


def no_mean(self, pipe, latents, *, size):
    latents = pipe._unpack_latents(latents, size[0], size[1], pipe.vae_scale_factor)
    std = latents.new_tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    return pipe.vae.decode(latents * std, return_dict=False)[0][:, :, 0]


def earlier_layer(encode, self, pipe, text, text_length, guidance):
    """The hidden states of one layer before the last."""
    read = pipe.text_encoder.forward

    def forward(*args, **kwargs):
        found = read(*args, **kwargs)
        found.hidden_states = (*found.hidden_states[:-2], found.hidden_states[-2], found.hidden_states[-2])
        return found

    pipe.text_encoder.forward = forward
    try:
        return encode(self, pipe, text, text_length=text_length, guidance=guidance)
    finally:
        pipe.text_encoder.forward = read


def no_template(encode, self, pipe, text, text_length, guidance):
    template, pipe.prompt_template_encode = pipe.prompt_template_encode, "{}" + "<|im_end|>" * 40
    try:
        return encode(self, pipe, text, text_length=text_length, guidance=guidance)
    finally:
        pipe.prompt_template_encode = template


def no_mask(call, x, sigma, condition):
    return call(condition={**condition, "mask": torch.ones_like(condition["mask"])})


@contextmanager
def shift_doubled():
    own = OfCheckpoint.__call__

    def doubled(self, steps, *, image_tokens):
        sigma_S1 = shift_sigmas(own(self, steps, image_tokens=image_tokens).double(), 3.0).float()
        sigma_S1[0] = 1
        return sigma_S1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OfCheckpoint, "__call__", doubled)
        yield


@contextmanager
def saved_to_another_module():
    own = adapters.save_adapter

    def wrong(pipe, folder):
        own(pipe, folder)
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        file = folder / adapters.WEIGHT_NAME
        with safe_open(file, "pt") as opened:
            said = opened.metadata()
        tensors = {
            k.replace("to_q", "to_X").replace("to_k", "to_q").replace("to_X", "to_k"): v
            for k, v in load_file(file).items()
        }
        save_file(tensors, file, said)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "save_adapter", wrong)
        yield


@contextmanager
def trained_elsewhere():
    own = adapters.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "add", lambda pipe, lora, **how: own(pipe, lora, **(how | {"targets": ("ff.net.2",)})))
        yield


MISTAKES = {
    "guidance dropped": Mistake("sd3", "rows through the network", velocity_of(Sd3, lambda call, *_: call(guidance=1.0))),
    "embedded guidance dropped": Mistake("flux", "guidance: guidance", velocity_of(Flux, lambda call, *_: call(guidance=1.0))),
    "guidance not renormalised": Mistake(
        "qwen_image", "guided velocity",
        mistaken(QwenImage, guided=lambda self, none, text, scale: none + scale * (text - none)),
    ),
    "velocity of the other sign": Mistake("flux", "guided velocity", velocity_of(Flux, lambda call, *_: -call())),
    "σ × 1000": Mistake("flux", "time of the network", velocity_of(Flux, lambda call, x, sigma, _: call(sigma=sigma * 1000))),
    "1 - σ": Mistake("qwen_image", "time of the network", velocity_of(QwenImage, lambda call, x, sigma, _: call(sigma=1 - sigma))),
    "shift doubled": Mistake("flux", "σ", Flux, shift_doubled),
    "wrong hidden layer": Mistake("qwen_image", "text states: encoder_hidden_states", encoded(QwenImage, earlier_layer)),
    "template left out": Mistake("qwen_image", "text states: encoder_hidden_states", encoded(QwenImage, no_template)),
    "padding mask lost": Mistake("qwen_image", "text states: encoder_hidden_states_mask", velocity_of(QwenImage, no_mask)),
    "height for width": Mistake("flux", "packing of latents", mistaken(Flux, decode=transposed)),
    "packing transposed": Mistake("qwen_image", "packing of latents", mistaken(QwenImage, decode=other_channels)),
    "scale of the autoencoder forgotten": Mistake("sd3", "latents before the decoder", mistaken(Sd3, decode=no_scale)),
    "mean of the autoencoder forgotten": Mistake("qwen_image", "latents before the decoder", mistaken(QwenImage, decode=no_mean)),
    "adapter on other layers": Mistake("sd3", "adapter: layers", Sd3, trained_elsewhere),
    "adapter saved to the wrong layer": Mistake("flux", "adapter: saved, in the plain library", Flux, saved_to_another_module),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MISTAKES])
def test_a_planted_mistake_is_named_by_its_row(name, checkpoints):
    mistake = MISTAKES[name]
    with mistake.around() if mistake.around else nullcontext():
        findings = conform(mistake.of(checkpoints[mistake.kind]), dtype="float32", device=torch.device("cpu"))
        found = next((finding for finding in findings if finding.differs), None)
    assert found is not None and found.name.startswith(mistake.row), found


def test_the_command_ends_with_one_at_a_difference_and_refuses_what_it_does_not_know(
    checkpoints, monkeypatch, tmp_path
):
    done = CliRunner().invoke(app, ["conform", checkpoints["flux"], "--device", "cpu"])
    assert done.exit_code == 0 and "in its own library" in done.output, done.output
    monkeypatch.setattr(Flux, "velocity", velocity_of(Flux, lambda call, *_: 2 * call()).velocity)
    done = CliRunner().invoke(app, ["conform", checkpoints["flux"], "--device", "cpu"])
    assert done.exit_code == 1 and "First difference: guided velocity" in done.output
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    done = CliRunner().invoke(app, ["conform", str(tmp_path)])
    assert "StableDiffusionXLPipeline" in str(done.exception) and "--model" in str(done.exception)
