"""The ledger of a flow run: its own forwards, on networks of its own classes without numbers, counted byte by byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from grpo_mm.ledger.counting import AsOnDevice, Counter
from grpo_mm.ledger.entries import Entry, Ledger, Phase, Plan, swapped
from grpo_mm.ledger.quantized import count_of, said_of
from grpo_mm.ledger.state import bytes_of, held, of_forward, of_optimiser, of_training
from grpo_mm.pipelines.flow.models.family import Size
from grpo_mm.pipelines.flow.models.known import known_pipeline
from grpo_mm.pipelines.flow.models.networks import NETWORKS, units_of
from grpo_mm.pipelines.flow.models.sources import SOURCES
from grpo_mm.pipelines.flow.policy import FlowPolicy, FlowPolicyConfig

PICTURE_PX = 1024
"""Height and width of a prompt's picture: what the pipelines bring pictures to, or the largest that they leave as it is."""
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
                widened = name == "vae" or (name in NETWORKS and full)
                part.requires_grad_(False).eval()
                torch.nn.Module.to(part, wide if widened else dtype)  # the library's own warns of what is meant here
        return self.pipe


@dataclass(frozen=True)
class _Pass:
    """One forward, or forward and backward, of some latents."""

    activations: int
    copies: int
    """Bytes of weights that autocast has cast."""
    flops: float


@dataclass(frozen=True)
class _Counted:
    """What follows from the policy alone."""

    net: FlowPolicy
    source: str
    condition: Mapping[str, Tensor]
    encode: _Pass
    value: _Pass
    """Without gradient, of `micro` latents of `size`."""
    update: _Pass
    evaluation: _Pass | None
    """As `value`, of pictures of another size."""
    decode: _Pass
    """Of `decode_batch` latents."""


def flow_ledger(policy: FlowPolicyConfig, engine: Any, plan: Plan, *, stored: int, velocities: int) -> Ledger:
    """Of a run that keeps `stored` latents of a step, and `velocities` of other policies at as many.

    Raises:
        ConfigError: a checkpoint that is neither here nor of a known size.
    """
    rows = policy.model.network_rows(policy.guidance)
    states = max(1, plan.calls["train"] // rows // max(1, plan.updates))  # of one update
    micro, decoded = min(policy.micro_batch, states), min(policy.decode_batch, plan.rows)
    named = replace(policy, micro_batch=micro, decode_batch=decoded, offload=())
    counted = _counted(_Key(repr(named), named), several=states > micro, evaluated=bool(plan.eval_rows))
    return _written(counted, policy, engine, plan, stored=stored, velocities=velocities)


@dataclass(frozen=True)
class _Key:
    """Policies that say the same are counted once."""

    said: str
    policy: FlowPolicyConfig

    def __hash__(self) -> int:
        return hash(self.said)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.said == other.said


@lru_cache(maxsize=32)
def _counted(key: _Key, *, several: bool, evaluated: bool) -> _Counted:
    """`several`: an update takes several forwards, so that all gradients are there when the last begins."""
    policy = key.policy
    pipe, source = known_pipeline(policy.model)
    net = FlowPolicy(
        replace(policy, model=_OnMeta(policy.model, pipe), merge_adapter=None, compile=False), torch.device("meta")
    )
    net.device = torch.device("cpu")
    size, eval_size = net.size(evaluation=False), net.size(evaluation=True)
    with AsOnDevice():
        condition, encode = _encode(net, size)
        micro = policy.micro_batch
        value = _forward(net, condition, micro, size)
        other = None
        if evaluated and eval_size != size:
            own = _encode(net, eval_size)[0] if net.config.pictures[1] else condition
            other = _forward(net, own, micro, eval_size)
        update = _update(net, condition, micro, size, several=several)
        return _Counted(net, source, condition, encode, value, update, other, _decode(net, policy.decode_batch, size))


def _written(
    counted: _Counted, policy: FlowPolicyConfig, engine: Any, plan: Plan, *, stored: int, velocities: int
) -> Ledger:
    net, pipe, network = counted.net, counted.net.pipe, counted.net.network
    micro, size = net.config.micro_batch, net.size(evaluation=False)
    constant_half = policy.detach_unconditional and policy.model.network_rows(policy.guidance) == 2
    trained = bytes_of(net.trainable.values())
    rows = net.family.network_rows(policy.guidance)
    latent = torch.Size(net.family.latent_shape(pipe, *size)).numel() * (8 if net.math_dtype == torch.float64 else 4)
    compute = str(net.dtype).removeprefix("torch.")

    blocks = [block for (block,) in units_of(network)]

    def held_in(one: _Pass, n: int, gradients: int = 0) -> tuple[Entry, ...]:
        weights = of_forward(
            network, compute, size=net.dtype.itemsize, copies=one.copies, gradients=gradients, blocks=blocks
        )
        return (*weights, Entry("activations", one.activations * n // micro))

    drawn = held_in(counted.value, min(engine.rollout_batch, plan.rows))
    if counted.evaluation is not None:
        others = held_in(counted.evaluation, min(engine.rollout_batch, plan.eval_rows))
        drawn = max(drawn, others, key=lambda parts: sum(part.bytes for part in parts))
    away, cpu = policy.offload, plan.kind == "cpu"
    encoders, decoder = sum(held(getattr(pipe, name, None)) for name in net.family.encoders), held(pipe.vae)
    resident = of_training("transformer", network, plan) + tuple(
        entry for entry in (
            Entry("text encoders", encoders, policy.dtype, place="host" if "encoders" in away else "device"),
            Entry("decoder", decoder, "float32", place="host" if "decoder" in away else "device"),
            Entry("contexts of a step's prompts", bytes_of(counted.condition.values()) * plan.prompts, compute, split="rows"),
            Entry("latents of a step", stored * latent, "float32", split="rows"),
            Entry("velocities of other policies", velocities * latent, "float32", split="rows"),
            Entry("velocities of the empty text", stored * latent * constant_half, "float32", split="rows"),
            Entry(f"{net.config.makes} of a step", plan.rows * 3 * math.prod(size), "uint8", place="device" if cpu else "host", split="rows"),
        ) if entry.bytes
    )  # fmt: skip
    encode = (
        Entry("activations", counted.encode.activations, compute),
        Entry("text encoders, moved in", encoders if "encoders" in away else 0, policy.dtype),
    )
    decode = (
        Entry("activations", counted.decode.activations, "float32"),
        Entry("decoder, moved in", decoder if "decoder" in away else 0, "float32"),
    )
    others = "other policies' velocities" if velocities else "evaluation with averaged weights"
    aside = (swapped(trained),) if plan.snapshots else ()
    copies = (*aside, *held_in(counted.value, micro)) if velocities or plan.snapshots else ()
    phases = (
        Phase("update", held_in(counted.update, micro, trained), LOWER, ("policy.micro_batch", micro)),
        of_optimiser(network, plan),
        Phase("sampling", drawn, "engine.rollout_batch", ("engine.rollout_batch", engine.rollout_batch)),
        Phase(others, copies, LOWER, ("policy.micro_batch", micro)),
        Phase("encoding prompts", encode, "policy.offload=[encoders]"),
        Phase(
            f"decoding {net.config.makes}", decode, "policy.decode_batch, policy.vae_slicing=true, policy.offload=[decoder]",
            ("policy.decode_batch", net.config.decode_batch),
        ),
    )  # fmt: skip
    each = counted.value.flops / (micro * rows)
    flops = {name: each * calls for name, calls in plan.calls.items() if name != "train"}
    flops |= {"train": counted.update.flops / (micro * rows) * plan.calls["train"]}
    flops |= {
        "encode": counted.encode.flops * plan.prompts,
        "decode": counted.decode.flops / net.config.decode_batch * plan.rows,
    }
    count = sum(p.numel() for p in net.trainable.values())
    said = (
        f"sizes of {counted.source}",
        *_drawn(counted, size, engine),
    )
    return Ledger(
        resident, phases, flops, low_precision=net.dtype == torch.bfloat16, trained=count,
        weights=count_of(network) - (count if policy.lora is not None else 0), said=(*said, *said_of(network)),
        devices=plan.devices, can_shard=policy.quantize is None,
    )  # fmt: skip


def _said_of(size: Size) -> str:
    *frames, height, width = size
    return "".join(f"{n} frames of " for n in frames) + f"{height} × {width} pixels"


def _said_of_pictures(counted: _Counted) -> str:
    """Behind the latents go those of the prompt's pictures, where the model reads some."""
    if SOURCES not in counted.condition:
        return ""
    number = len(_blank(counted.net))
    words = f"{number} picture{'s' if number > 1 else ''} of {PICTURE_PX} × {PICTURE_PX} pixels"
    return f" and {counted.condition[SOURCES].shape[1]} of {words}"


def _drawn(counted: _Counted, size: Size, engine: Any) -> list[str]:
    """What is drawn in training, and what in evaluation where that is another or may be, and what the family says."""
    net = counted.net
    tokens, evaluated = net.family.image_tokens, net.size(evaluation=True)
    lines = [f"a prompt: {tokens(net.pipe, *size)} image tokens ({_said_of(size)}){_said_of_pictures(counted)}"]
    if net.config.draws_clips:
        lines[0] += f" in {engine.steps} steps"
        lines.append(
            f"a prompt of an evaluation, and what the model card draws: {tokens(net.pipe, *evaluated)} image tokens "
            f"({_said_of(evaluated)}) in {engine.eval_steps} steps; {net.config.frame_rate:g} frames a second"
        )
    return [*lines, *(net.family.said(net.pipe, net.config) if hasattr(net.family, "said") else ())]


def _encode(net: FlowPolicy, size: Size) -> tuple[Mapping[str, Tensor], _Pass]:
    """(the condition of one prompt, what making it takes)."""
    longest = "a photo " * (net.config.text_length if getattr(net.family, "ragged", False) else 1)
    of_pictures = {} if net.config.pictures[1] == 0 else {"pictures": _blank(net), "size": size}
    with Counter() as counter:
        condition = net.family.encode(
            net.pipe,
            longest.strip(),
            text_length=net.config.text_length,
            guidance=net.config.guidance,
            **of_pictures,
        )
        return condition, _Pass(counter.peak, 0, counter.flops)


def _blank(net: FlowPolicy) -> list[Any]:
    """As many pictures as a prompt has at least; one for a model that needs none, where `policy.media` says that there are some."""
    from PIL import Image

    number = net.config.pictures[0] or int(net.config.media is not None)
    return [Image.new("RGB", (PICTURE_PX, PICTURE_PX))] * number


def _inputs(net: FlowPolicy, condition: Mapping[str, Tensor], n: int, size: Size) -> tuple[Any, ...]:
    x = torch.empty(n, *net.family.latent_shape(net.pipe, *size), dtype=net.math_dtype, device="meta")
    here = {name: value.expand(n, *value.shape[1:]).clone() for name, value in condition.items()}
    return x, torch.empty(n, dtype=net.math_dtype, device="meta"), here


def _forward(net: FlowPolicy, condition: Mapping[str, Tensor], n: int, size: Size) -> _Pass:
    with Counter() as counter, torch.no_grad():
        x, sigma, here = _inputs(net, condition, n, size)
        net.velocity(x, sigma, here, size=size, guidance=net.config.guidance)
        return _Pass(counter.peak - counter.copies, counter.copies, counter.flops)


def _update(net: FlowPolicy, condition: Mapping[str, Tensor], n: int, size: Size, *, several: bool) -> _Pass:
    """Activations beside the gradients."""
    trained = bytes_of(net.trainable.values())
    for p in net.trainable.values():
        p.grad = torch.empty_like(p) if several else None
    with Counter() as counter:
        x, sigma, here = _inputs(net, condition, n, size)
        velocity = net.velocity(x, sigma, here, size=size, guidance=net.config.guidance)
        (velocity - x).square().flatten(1).mean(1).sum().backward()
        peak, copies, flops = counter.peak, counter.copies, counter.flops
    for p in net.trainable.values():
        p.grad = None
    return _Pass(max(0, peak - copies - (0 if several else trained)), copies, flops)


def _decode(net: FlowPolicy, n: int, size: Size) -> _Pass:
    with Counter() as counter, torch.no_grad():
        x = torch.empty(n, *net.family.latent_shape(net.pipe, *size), dtype=net.math_dtype, device="meta")
        decoded = net.family.decode(net.pipe, x, size=size).float()
        (decoded / 2 + 0.5).clamp(0, 1).mul(255)
        return _Pass(counter.peak, 0, counter.flops)
