"""What a pipeline says while it draws: every call of its network, every step of its scheduler, what its decoder is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from grpo_mm.pipelines.flow.models.networks import networks_of


@dataclass(frozen=True)
class Call:
    """One call of the network. Example: Call({"timestep": …, "hidden_states": …}, …)."""

    inputs: Mapping[str, Any]
    """By the names that the network has for them; lists are taken apart, "x.0", "x.1"; what is None or empty is left out."""
    output: Any
    network: str = "transformer"
    """Its name in the pipeline."""


@dataclass(frozen=True)
class Step:
    """One step of the scheduler: latents before and after it, and the velocity that took it there."""

    velocity: Tensor
    before: Tensor
    after: Tensor


@dataclass
class Heard:
    """In the order in which it was said, on the CPU."""

    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    decoded: list[Tensor] = field(default_factory=list)
    """What the decoder was given."""


@contextmanager
def listening(pipe: Any) -> Iterator[Heard]:
    """Records what a pipeline does meanwhile; what it does stays the same."""
    heard = Heard()

    def called(name: str) -> Any:
        def hear(network: Any, args: Any, kwargs: Any, output: Any) -> None:
            said = kept(output[0] if isinstance(output, tuple) else output)
            heard.calls.append(Call(_named(network.forward, args, kwargs), said, name))

        return hear

    hooks = [
        network.register_forward_hook(called(name), with_kwargs=True) for name, network in networks_of(pipe).items()
    ]
    step, decode = pipe.scheduler.step, pipe.vae.decode

    def stepped(velocity: Tensor, timestep: Any, before: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = step(velocity, timestep, before, *args, **kwargs)
        heard.steps.append(Step(kept(velocity), kept(before), kept(result[0])))
        return result

    def decoded(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        heard.decoded.append(kept(latents))
        return decode(latents, *args, **kwargs)

    pipe.scheduler.step, pipe.vae.decode = stepped, decoded
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
        del pipe.scheduler.step, pipe.vae.decode  # those of the classes are there again


def kept(value: Any) -> Any:
    """A copy on the CPU, of tensors in lists too."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return [kept(part) for part in value] if isinstance(value, (list, tuple)) else value


def _named(forward: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(forward).bind(*args, **kwargs).arguments
    found: dict[str, Any] = {}
    for name, value in bound.items():
        parts = value if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value) else None
        for key, one in [(name, value)] if parts is None else [(f"{name}.{i}", v) for i, v in enumerate(parts)]:
            if one is not None and not (isinstance(one, dict) and not one) and name != "return_dict":
                found[key] = kept(one)
    return found
