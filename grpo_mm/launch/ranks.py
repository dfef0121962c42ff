"""Which trainer has which rank, and the environment that torchrun would give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.launch.workers import DEVICES


def in_order(seats: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of trainers by rank: first those of the node that sees the newest checkpoint, where rank 0 reads it; those of a node
    are neighbours.

    seats: what `TrainerWorker.about` says.
    """
    newest: dict[str, int] = {}
    for seat in seats:
        newest[seat["node"]] = max(newest.get(seat["node"], -1), seat["checkpoint"])
    nodes = sorted(newest, key=lambda node: -newest[node])  # stable: else as they were placed
    return [i for node in nodes for i, seat in enumerate(seats) if seat["node"] == node]


def environments(seats: Sequence[Mapping[str, Any]], *, address: str, port: int) -> list[dict[str, str]]:
    """Of trainers in order of rank; one that is alone gets none of torchrun's, as without a launcher.

    All GPUs of a node's trainers are visible to each of them, which takes that of its local rank, as torchrun has it.
    """
    if len(seats) == 1:
        return [_devices(seats)]
    nodes = list(dict.fromkeys(seat["node"] for seat in seats))
    found = []
    for rank, seat in enumerate(seats):
        mates = [i for i, other in enumerate(seats) if other["node"] == seat["node"]]
        own = {
            "RANK": rank, "WORLD_SIZE": len(seats), "LOCAL_RANK": mates.index(rank), "LOCAL_WORLD_SIZE": len(mates),
            "GROUP_RANK": nodes.index(seat["node"]), "GROUP_WORLD_SIZE": len(nodes),
            "MASTER_ADDR": address, "MASTER_PORT": port,
        }  # fmt: skip
        found.append({name: str(value) for name, value in own.items()} | _devices([seats[i] for i in mates]))
    return found


def _devices(mates: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found = list(dict.fromkeys(one for seat in mates for one in seat["devices"].split(",") if one))
    return {DEVICES: ",".join(found)} if found else {}
