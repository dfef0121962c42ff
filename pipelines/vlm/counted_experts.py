"""Adapters on experts, for counting: peft asks the meta device for its autocast, which has none; that of these ledgers is the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def adapted_experts() -> Iterator[None]:
    """Within, the change of stacked weights is made in their own dtype, as on a device."""
    from peft.tuners.lora import layer

    proxy = getattr(layer, "_LoraFactorsProxy", None)  # not in all versions
    if proxy is None:
        yield
        return
    forward = proxy.forward

    def counted(self: Any, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.baddbmm(weight, self.lhs, self.rhs, alpha=self.scaling)

    proxy.forward = counted
    try:
        yield
    finally:
        proxy.forward = forward
