"""Frozen weights of 4 and 8 bits under an adapter, and moments of 8 bits: ratios of unchanged weights are 1, runs go on bit for bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import record, weights, write_config
from tiny_vlm import change, policy, sample

from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.weights import eight_bit
from grpo_mm.weights.optim import Optim


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_sampler_and_trainer_see_the_same_quantized_weights(kind):
    pytest.importorskip("bitsandbytes")
    plain, p = policy(lora=Lora(rank=2)), policy(lora=Lora(rank=2), quantize=kind)
    for one in (plain, p):
        change(one, scale=0.1)
    layers = [
        m
        for m in p.model.model.language_model.modules()
        if type(m).__module__.startswith(("bitsandbytes", "grpo_mm.weights"))
    ]
    assert len(layers) >= 3 * 7 and all(not m.weight.requires_grad and m.weight.element_size() == 1 for m in layers)
    assert p.trainable.keys() == plain.trainable.keys()
    rollout, _ = sample(p, group_size=2)
    plan = p.plan(rollout, rollout.mask_NA)
    other = plain.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=False)
    apart = []
    for (index, values), (_, plain_values) in zip(
        p.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=True), other
    ):
        wanted = rollout.behaviour_NA.view(-1)[index].where(rollout.mask_NA.view(-1)[index], 0)
        found = values["logprobs"].where(rollout.mask_NA.view(-1)[index], 0)
        assert float((found.detach() - wanted).abs().max()) < 1e-4
        apart.append(
            float((found.detach() - plain_values["logprobs"].where(rollout.mask_NA.view(-1)[index], 0)).abs().max())
        )
        found.sum().backward()
    assert max(apart) > 1e-3  # it does round
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in p.trainable.values())


def values_and_gradients(p, rollout):
    """(log-probabilities of all tokens, gradients of their sum)"""
    for parameter in p.trainable.values():
        parameter.grad = None
    values = []
    for _, found in p.logprobs(rollout, p.plan(rollout, rollout.mask_NA), needs=frozenset({"logprobs"}), grad=True):
        values.append(found["logprobs"].detach().flatten())
        found["logprobs"].sum().backward()
    return torch.cat(values), torch.cat([parameter.grad.flatten() for parameter in p.trainable.values()])


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_values_and_gradients_are_those_of_the_rounded_weights(kind, checkpointed, caplog):
    """Also after weights have been sampled with, when some CPUs would repack them for a kernel without a gradient; and where layers
    are in training mode while they train, as those that are checkpointed."""
    pytest.importorskip("bitsandbytes")
    p, plain = policy(lora=Lora(rank=2), quantize=kind, gradient_checkpointing=checkpointed), policy(lora=Lora(rank=2))
    change(p, scale=0.1)
    layers = dict(p.model.named_modules())
    with torch.no_grad():
        for name, parameter in plain.trainable.items():
            parameter.copy_(p.trainable[name])
        for name, layer in plain.model.named_modules():
            if type(there := layers[name]).__module__.startswith(("bitsandbytes", "grpo_mm.weights")):
                layer.weight.copy_(rounded(there))
    rollout, _ = sample(p, group_size=2)
    for found, wanted in zip(values_and_gradients(p, rollout), values_and_gradients(plain, rollout)):
        assert float(wanted.abs().max()) > 0.1 and torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert "inputs will be cast" not in caplog.text


def rounded(layer):
    if layer.weight.dtype == torch.int8:
        return layer.weight.float() * (layer.weight.SCB / 127)[:, None]
    return __import__("bitsandbytes").functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def test_a_run_with_8_bit_moments_goes_on_bit_for_bit(tiny_sd3, tmp_path):
    pytest.importorskip("bitsandbytes")
    more = {"optim": {"moments": "8bit"}, "policy": {"lora": {"rank": 256}}}
    config = write_config(tmp_path, tiny_sd3, more)
    train(config)
    there = weights(tmp_path / "runs/tiny", 3), record(tmp_path / "runs/tiny")
    moments = load_file(tmp_path / "runs/tiny/checkpoints/step_000003/optimizer.safetensors")
    assert {t.dtype for name, t in moments.items() if "state" in name} >= {torch.uint8}
    again = tmp_path / "again"
    again.mkdir()
    config = write_config(again, tiny_sd3, more)
    train(config, ["steps=2"])
    train(config)
    assert weights(again / "runs/tiny", 3) == there[0]
    assert record(again / "runs/tiny")[-1] == there[1][-1]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_pictures_on_a_quantized_transformer_train(kind, tiny_sd3, tmp_path, caplog):
    """The tiny network has a few layers of a width that can be quantized; the others are told."""
    pytest.importorskip("bitsandbytes")
    train(write_config(tmp_path, tiny_sd3, {"policy": {"quantize": kind}}))
    assert all(
        row["policy/logprob_gap"] < 1e-5 for row in record(tmp_path / "runs/tiny") if "policy/logprob_gap" in row
    )
    assert "linear layers stay as they are" in caplog.text


def test_what_cannot_be_is_refused_before_a_model_loads(tiny_sd3, monkeypatch):
    for config in (
        VlmPolicyConfig("zoo:vision_language", quantize="nf4"),
        VlmPolicyConfig("zoo:vision_language", quantize="int8", lora=Lora(), save_merged=True),
        FlowPolicyConfig(model=Sd3(tiny_sd3), height=32, width=32, quantize="nf4"),
    ):
        with pytest.raises(ConfigError, match="under an adapter"):
            config.check()
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install 'grpo_mm\[quant\]'"):
        Optim(moments="8bit").build([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(ConfigError, match="bitsandbytes"):
        eight_bit.quantize([torch.nn.Sequential(torch.nn.Linear(64, 2))], "nf4", compute=torch.float32)
