"""How far rewards lie apart: over the batch, and within the groups, where a method finds its signal."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_mm.rollout.groups import group_count, group_std
from grpo_mm.rollout.table import Table


def reward_spread(table: Table) -> dict[str, float]:
    """`reward/NAME/std` and `reward/NAME/group_std` of every reward, over the outputs of all ranks that have a score.

    Standard deviations with n - 1, in units of the reward. group_std: the mean over the prompts with at least two scores.
    Demonstrations take no part. NaN where there is too little to compare.
    """
    is_demo_M = table.columns["demo"].bool() if "demo" in table.columns else torch.zeros(len(table), dtype=torch.bool)
    group_M = table.key(("prompt",))
    found = {}
    for name, value_M in table.values.items():
        value_M = value_M.where(~is_demo_M, torch.nan)
        found[f"reward/{name}/std"] = _std(value_M[value_M.isfinite()])
        several_P = group_count(value_M, group_M) > 1
        std_P = group_std(value_M, group_M, ddof=1)[several_P]
        found[f"reward/{name}/group_std"] = float(std_P.mean())
    return found


def _std(value: Tensor) -> float:
    return float(value.std()) if len(value) > 1 else float("nan")
