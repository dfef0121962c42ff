"""What a run may go on with after a setting changed: three classes, which stand beside the fields of dataclasses.

    micro_batch: int = field(default=8, metadata=FREE)

A field that says nothing has the class of what holds it: the field above it, or the role that its component plays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field
from types import MappingProxyType
from typing import Any, Literal

Identity = Literal["free", "noted", "refused"]
"""free: beyond rounding it changes nothing that is computed. noted: the run may go on if it is told to, and its record says so.
refused: with another value it is another run."""

FREE: Mapping[str, Any] = MappingProxyType({"identity": "free"})
NOTED: Mapping[str, Any] = MappingProxyType({"identity": "noted"})
REFUSED: Mapping[str, Any] = MappingProxyType({"identity": "refused"})

OF_A_ROLE: Mapping[str, Identity] = MappingProxyType({
    "policy": "refused", "engine": "refused", "flow_model": "refused", "schedule": "refused", "sampler": "refused",
    "solver": "refused", "tree": "refused", "draws": "refused", "demonstration": "refused",
    "noise": "noted", "generator": "noted", "media": "noted",
    "strategy": "noted", "allocation": "noted", "advantage": "noted", "objective": "noted",
    "prompts": "noted", "reward": "noted", "judge": "noted", "verdict": "noted", "vlm": "noted", "detector": "noted",
    "color": "noted", "sketch": "free", "benchmark": "free", "prediction_file": "free",
})  # fmt: skip
"""Of the fields of a component that say nothing themselves. Which component it is (its kind) has the class of the field that
holds it."""
OF_A_USER: Identity = "noted"
"""Of the fields of a component that no room of this package lists."""


def identity_of(field: Field[Any], within: Identity) -> Identity:
    """The class of a field; `within`: of what holds it. What lies in a free setting is free, whatever it says itself.

    Raises:
        ValueError: the metadata of the field names another class.
    """
    said = field.metadata.get("identity", within)
    if said not in ("free", "noted", "refused"):
        raise ValueError(f"field {field.name}: identity is {said!r}, wanted free, noted or refused.")
    return "free" if within == "free" else said
