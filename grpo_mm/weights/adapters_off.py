"""An adapter whose second factors are all zero does nothing: leaving it out gives the same numbers, and is quicker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SECOND = ".lora_B."


def does_nothing(values: Mapping[str, Tensor]) -> bool:
    """Whether trained weights are those of an adapter, and its second factors are all zero, as they begin."""
    second = [value for name, value in values.items() if SECOND in f".{name}."]
    return bool(second) and not any(bool(torch.any(value)) for value in second)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within, peft's layers are their base layers; what is trained is left as it is, unlike peft's own switch."""
    layers = [module for module in model.modules() if getattr(module, "_disable_adapters", None) is False]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
