"""Whether processes hold the same bytes: sums of bit patterns, cheap enough to take between steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensors: Iterable[Tensor]) -> int:
    """Of the bits of some tensors, in their order; on this process alone, of its own part where they are cut."""
    return combined(bit_sums(tensors))


@torch.no_grad()
def bit_sums(tensors: Iterable[Tensor]) -> list[int]:
    """Of each tensor, or of this process's part of it; those of the parts add up to that of the whole, modulo 2⁶⁴."""
    found = []
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        bits = local.detach().contiguous().flatten().view(_AS_INTEGERS[local.element_size()])
        found.append(int(bits.sum(dtype=torch.int64)))
    return found


def combined(sums: Iterable[int]) -> int:
    """One number of many, in their order."""
    total = 0
    for number, value in enumerate(sums):
        total = (total * 1_000_003 + number + value) % 2**63
    return total
