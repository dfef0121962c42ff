"""The networks of a pipeline that say the velocity: one, or two experts that have their noise levels each (Wan2.2 A14B)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NETWORKS = ("transformer", "transformer_2")
"""Of two, the first says it at high noise."""
SECOND = NETWORKS[1]


def networks_of(pipe: Any) -> dict[str, nn.Module]:
    """By their names in the pipeline, in the order of NETWORKS."""
    found = {name: getattr(pipe, name, None) for name in NETWORKS}
    return {name: network for name, network in found.items() if network is not None}


def network_of(pipe: Any) -> nn.Module:
    """The only network as it is; of two a container, so that no two of their weights have one name."""
    found = networks_of(pipe)
    return nn.ModuleDict(found) if len(found) > 1 else found[NETWORKS[0]]


def each_of(network: nn.Module) -> list[nn.Module]:
    """Those that `network_of` has put together."""
    return list(network.values()) if isinstance(network, nn.ModuleDict) else [network]


def units_of(network: nn.Module) -> list[list[nn.Module]]:
    """What of a transformer is gathered at once: each block of its lists of blocks, of two transformers one after the other."""
    lists = [part for one in each_of(network) for part in one.children() if isinstance(part, nn.ModuleList)]
    return [[block] for part in lists for block in part]


def batches(kind_n: Tensor, size: int) -> Tensor:
    """Which forward each state is in, [n]: of one kind each and at most `size` of them, in their order.

    Example: kinds [0, 1, 0, 0, 1], size 2 -> [0, 2, 0, 1, 2].
    """
    batch_n, start = torch.zeros_like(kind_n), 0
    for kind in kind_n.unique().tolist():
        here = torch.nonzero(kind_n == kind).flatten()
        batch_n[here] = start + torch.arange(len(here), device=kind_n.device) // size
        start += -(-len(here) // size)
    return batch_n
