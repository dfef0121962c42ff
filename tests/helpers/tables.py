"""Tables and rollouts of a few rows, written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpo_mm.rollout.table import Table
from grpo_mm.types import Prompt, Rollout


def table(values=None, *, prompt, reward=None, failed=None, weights=None, **columns: Any) -> Table:
    """A gathered table of one rank, columns as plain lists; rows are outputs of samples 0, 1, … if nothing is said."""
    size = len(prompt)
    known = {
        "prompt": torch.tensor(prompt),
        "sample": torch.arange(size),
        "action": torch.full((size,), -1),
        "tag": torch.zeros(size, dtype=torch.int64),
        "failed": torch.tensor(failed or [False] * size),
        "rank": torch.zeros(size, dtype=torch.int64),
    } | {name: torch.as_tensor(c) for name, c in columns.items()}
    known.setdefault("local_row", known["sample"])
    values = {"reward": reward} if values is None else values
    return Table({n: torch.as_tensor(v, dtype=torch.float64) for n, v in values.items()}, known, weights or {})


def rollout(rows: int, actions: int = 1) -> Rollout:
    """Rows of prompts of their own with actions that count."""
    return Rollout(
        prompts=tuple(Prompt(f"p{i}", "text") for i in range(rows)),
        prompt_N=torch.zeros(rows, dtype=torch.int64),
        sample_N=torch.arange(rows),
        behaviour_NA=torch.zeros(rows, actions),
        mask_NA=torch.ones(rows, actions, dtype=torch.bool),
        record=None,
    )


def only(t: Table) -> Tensor:
    """The values [M] of the one component."""
    (value_M,) = t.values.values()
    return value_M
