"""What settled the advantage of each picture of a tree: at which depth, and among how many values it was compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from grpo_mm.advantages.credit import Stage
from grpo_mm.rollout.table import Table
from grpo_mm.types import WHOLE_ROW

Settled = dict[tuple[int, int], list[dict[str, Any]]]
"""By (prompt, sample): {"depth" (of actions, from 1), "advantage", "compared", "value", "low", "high"} each."""


def settled(table: Table, stages: Sequence[Stage], *, prompts: int) -> Settled:
    """Of the first `prompts` prompts, where advantages differ from action to action; empty where a row has but one.

    Runs the stages once more on the table, which they do not change. The comparison is the one of the last stage with a `key`;
    its value is the weighted sum of what it compared. An edge that leaves share settles them all.
    """
    edge_LA, leaves = table.columns.get("edge"), table.take(torch.nonzero(table.columns["prompt"] < prompts).flatten())
    before, final, key = table, table, ("prompt",)
    for stage in stages:
        if getattr(stage, "key", None) is not None:
            before, key = final, stage.key
        final = stage(final)
    if len(final.values) != 1 or bool((final.columns["action"] == WHOLE_ROW).all()):
        return {}
    compared = _compared(before, key)
    (advantage_M,) = final.values.values()
    names = [final.columns[name].tolist() for name in ("prompt", "sample", "action")]
    own: dict[tuple[int, int, int], dict[str, Any]] = {}
    for p, sample, action, advantage in zip(*names, advantage_M.tolist(), strict=True):
        if p < prompts and action >= 0:
            what = compared.get((p, sample, action)) or compared.get((p, sample, WHOLE_ROW)) or _NOTHING
            own[p, sample, action] = {"depth": action + 1, "advantage": advantage, **what}
    found: Settled = {}
    if edge_LA is None:
        for (p, sample, _), one in sorted(own.items()):
            found.setdefault((p, sample), []).append(one)
        return found
    first: dict[tuple[int, int, int], int] = {}
    places = list(
        zip(leaves.columns["prompt"].tolist(), leaves.columns["sample"].tolist(), leaves.columns["edge"].tolist())
    )
    for p, sample, edges in places:
        for action, edge in enumerate(edges):
            holder = first.setdefault((p, action, edge), sample)
            if (p, holder, action) in own:
                found.setdefault((p, sample), []).append(own[p, holder, action])
    return found


_NOTHING: dict[str, Any] = {"compared": 0, "value": None, "low": None, "high": None}


def _compared(table: Table, key: tuple[str, ...]) -> dict[tuple[int, int, int], dict[str, Any]]:
    """By (prompt, sample, action): the size of its comparison set, its value and the set's ends; of several tags the first."""
    value_M = torch.stack([table.weights.get(name, 1.0) * value.double() for name, value in table.values.items()]).sum(
        0
    )
    group = table.key(key).tolist()
    sets: dict[int, list[float]] = {}
    for g, value in zip(group, value_M.tolist()):
        if value == value:
            sets.setdefault(g, []).append(value)
    names = [table.columns[name].tolist() for name in ("prompt", "sample", "action")]
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for p, sample, action, g, value in zip(*names, group, value_M.tolist(), strict=True):
        own = sets.get(g, [])
        ends = {"low": min(own), "high": max(own)} if own else {"low": None, "high": None}
        found.setdefault(
            (p, sample, action), {"compared": len(own), "value": value if value == value else None, **ends}
        )
    return found
