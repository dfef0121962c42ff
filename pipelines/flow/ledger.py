"""The ledger of a flow run: its own forwards, on networks of its own classes without numbers, counted byte by byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_mm.ledger.counting import AsOnDevice, Counter
from grpo_mm.ledger.entries import Entry, Ledger, Phase, Plan, swapped
from grpo_mm.ledger.state import bytes_of, held, of_optimiser, of_training
from grpo_mm.pipelines.flow.models.known import known_pipeline
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig

LOWER = "policy.micro_batch, policy.gradient_checkpointing=true"


@dataclass(frozen=True)
class _OnMeta:
    """A family whose pipeline is made already."""

    family: Any
    pipe: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def load(self, dtype: torch.dtype, *, full: bool) -> Any:
        wide = torch.promote_types(dtype, torch.float32)
        for name, part in self.pipe.components.items():
            if isinstance(part, torch.nn.Module):
                widened = name == "vae" or (name == "transformer" and full)
                part.requires_grad_(False).eval()
                torch.nn.Module.to(part, wide if widened else dtype)  # the library's own warns of what is meant here
        return self.pipe


def flow_ledger(policy: FlowPolicyConfig, engine: Any, plan: Plan, *, stored: int, velocities: int) -> Ledger:
    """Of a run that keeps `stored` latents of a step, and `velocities` of other policies at as many.

    Raises:
        ConfigError: a checkpoint that is neither here nor of a known size.
    """
    pipe, source = known_pipeline(policy.model)
    config = replace(
        policy, model=_OnMeta(policy.model, pipe), merge_adapter=None, compile=False, vae_slicing=policy.vae_slicing
    )
    net = FlowPolicy(config, torch.device("meta"))
    net.device = torch.device("cpu")
    with AsOnDevice():
        return _counted(net, engine, plan, source, stored, velocities)


def _counted(net: FlowPolicy, engine: Any, plan: Plan, source: str, stored: int, velocities: int) -> Ledger:
    config, pipe, network = net.config, net.pipe, net.network
    size, eval_size = net.size(evaluation=False), net.size(evaluation=True)
    trained = bytes_of(net.trainable.values())
    condition, encode_peak, encode_flops = _encode(net)
    rows = net.family.network_rows(config.guidance)
    shape = net.family.latent_shape(pipe, *size)
    latent = torch.Size(shape).numel() * (8 if net.math_dtype == torch.float64 else 4)
    states = max(1, plan.calls["train"] // rows // max(1, plan.updates))  # of one update
    micro = min(config.micro_batch, states)
    update, train_flops, train_rows = _update(net, condition, micro, size, trained, several=states > micro)
    value_peak, value_flops = _forward(net, condition, micro, size)
    drawn_peak, _ = _forward(net, condition, min(engine.rollout_batch, plan.rows), size)
    if plan.eval_rows and eval_size != size:
        drawn_peak = max(drawn_peak, _forward(net, condition, min(engine.rollout_batch, plan.eval_rows), eval_size)[0])
    decode_peak, decode_flops = _decode(net, min(config.decode_batch, plan.rows), size)
    away = config.offload
    encoders = sum(held(getattr(pipe, name, None)) for name in net.family.encoders)
    decoder = held(pipe.vae)
    resident = of_training("transformer", network, plan) + tuple(
        entry for entry in (
            Entry("text encoders", encoders, config.dtype, place="host" if "encoders" in away else "device"),
            Entry("decoder", decoder, "float32", place="host" if "decoder" in away else "device"),
            Entry("latents of a step", stored * latent, "float32"),
            Entry("velocities of other policies", velocities * latent, "float32"),
            Entry("pictures of a step", plan.rows * 3 * size[0] * size[1], "uint8", place="host"),
        ) if entry.bytes
    )  # fmt: skip
    encode = (
        Entry("activations", encode_peak),
        Entry("text encoders, moved in", encoders if "encoders" in away else 0),
    )
    decode = (Entry("activations", decode_peak), Entry("decoder, moved in", decoder if "decoder" in away else 0))
    aside = (swapped(trained),) if plan.snapshots else ()
    phases = (
        Phase("update", update, LOWER),
        of_optimiser(network, plan),
        Phase("sampling", (Entry("activations", drawn_peak),), "engine.rollout_batch"),
        Phase("other policies' velocities", (*aside, Entry("activations", value_peak)), LOWER),
        Phase("encoding prompts", encode, "policy.offload=[encoders]"),
        Phase("decoding pictures", decode, "policy.decode_batch, policy.vae_slicing=true, policy.offload=[decoder]"),
    )
    each = value_flops / (micro * rows)
    flops = {name: each * calls for name, calls in plan.calls.items() if name != "train"}
    flops |= {"train": train_flops / train_rows * plan.calls["train"], "encode": encode_flops * plan.prompts}
    flops["decode"] = decode_flops * plan.rows
    weights = sum(p.numel() for p in network.parameters())
    count = sum(p.numel() for p in net.trainable.values())
    said = (
        f"sizes of {source}",
        f"pictures of {size[0]} × {size[1]} pixels: {net.family.image_tokens(pipe, *size)} image tokens",
    )
    return Ledger(
        resident, phases, flops, low_precision=net.dtype == torch.bfloat16, trained=count,
        weights=weights - (count if config.lora is not None else 0), said=said,
    )  # fmt: skip


def _encode(net: FlowPolicy) -> tuple[Mapping[str, Tensor], int, float]:
    """(the condition of one prompt, most bytes, operations)"""
    with Counter() as counter:
        condition = net.family.encode(
            net.pipe, "a photo", text_length=net.config.text_length, guidance=net.config.guidance
        )
        return condition, counter.peak, counter.flops


def _inputs(net: FlowPolicy, condition: Mapping[str, Tensor], n: int, size: tuple[int, int]) -> tuple[Any, ...]:
    shape = net.family.latent_shape(net.pipe, *size)
    x = torch.empty(n, *shape, dtype=net.math_dtype, device="meta")
    return (
        x,
        torch.empty(n, dtype=net.math_dtype, device="meta"),
        {k: v.expand(n, *v.shape[1:]) for k, v in condition.items()},
    )


def _forward(net: FlowPolicy, condition: Mapping[str, Tensor], n: int, size: tuple[int, int]) -> tuple[int, float]:
    """(most bytes, operations) of one forward without gradient, of n latents."""
    with Counter() as counter, torch.no_grad():
        x, sigma, here = _inputs(net, condition, n, size)
        here = {name: value.clone() for name, value in here.items()}
        net.velocity(x, sigma, here, size=size, guidance=net.config.guidance)
        return counter.peak, counter.flops


def _update(
    net: FlowPolicy, condition: Mapping[str, Tensor], n: int, size: tuple[int, int], trained: int, *, several: bool
) -> tuple[tuple[Entry, ...], float, int]:
    """(gradients and activations of one forward and backward, its operations, rows that went through the network)."""
    for p in net.trainable.values():
        p.grad = torch.empty_like(p) if several else None
    with Counter() as counter:
        x, sigma, here = _inputs(net, condition, n, size)
        here = {name: value.clone() for name, value in here.items()}
        velocity = net.velocity(x, sigma, here, size=size, guidance=net.config.guidance)
        (velocity - x).square().flatten(1).mean(1).sum().backward()
        peak, flops = counter.peak, counter.flops
    for p in net.trainable.values():
        p.grad = None
    activations = peak if several else max(0, peak - trained)
    entries = (Entry("gradients", trained, "float32", divisible=True), Entry("activations", activations))
    return entries, flops, n * net.family.network_rows(net.config.guidance)


def _decode(net: FlowPolicy, n: int, size: tuple[int, int]) -> tuple[int, float]:
    """(most bytes of decoding n latents, operations of one)."""
    with Counter() as counter, torch.no_grad():
        x = torch.empty(n, *net.family.latent_shape(net.pipe, *size), dtype=net.math_dtype, device="meta")
        decoded = net.family.decode(net.pipe, x, size=size).float()
        (decoded / 2 + 0.5).clamp(0, 1).mul(255)
        return counter.peak, counter.flops / n
