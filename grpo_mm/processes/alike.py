"""Whether processes hold the same bytes: sums of bit patterns, cheap enough to take between steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> int:
    """Of the bits of some tensors, in their order; on this process alone, of its own part where they are cut."""
    total = 0
    for number, tensor in enumerate(tensors):
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        bits = local.detach().contiguous().flatten().view(_AS_INTEGERS[local.element_size()])
        total = (total * 1_000_003 + number + int(bits.sum(dtype=torch.int64))) % 2**63
    return total
