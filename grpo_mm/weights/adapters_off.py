"""An adapter whose second factors are all zero does nothing: leaving it out gives the same numbers, and is quicker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SECOND = ".lora_B."


def does_nothing(values: Mapping[str, Tensor]) -> bool:
    """Whether trained weights are those of an adapter, and its second factors are all zero, as they begin."""
    second = [value for name, value in values.items() if SECOND in f".{name}."]
    return bool(second) and not any(bool(torch.any(value)) for value in second)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Within, peft's layers are their base layers; what is trained is left as it is, unlike peft's own switch. Gives those layers."""
    layers = [module for module in model.modules() if getattr(module, "_disable_adapters", None) is False]
    with _switched(layers, off=True):
        yield layers


@contextmanager
def adapters_back(layers: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """Within, layers that `adapters_off` has left out act again. Gives those that are left out: none."""
    with _switched(layers, off=False):
        yield []


@contextmanager
def _switched(layers: Sequence[nn.Module], *, off: bool) -> Iterator[None]:
    for layer in layers:
        layer._disable_adapters = off
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = not off
