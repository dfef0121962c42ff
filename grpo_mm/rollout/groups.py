"""The one numeric primitive of the core: statistics of values within comparison sets.

A comparison set is everything that shares a key. Sets may have any size and come in any order; NaN means "could not be
scored" and takes no part in any statistic.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Center = Literal["mean", "leave_one_out", "median", "none"]
Scale = Literal["std", "mad", "none"]


def group_ids(*keys_M: Tensor) -> Tensor:
    """Dense ids 0..num_groups-1 of the rows of one or more integer key columns, [M] each -> [M]."""
    ids_M = _dense(keys_M[0])
    for key_M in keys_M[1:]:
        other_M = _dense(key_M)
        ids_M = _dense(ids_M * (other_M.max() + 1) + other_M) if len(ids_M) else ids_M
    return ids_M


def _dense(key_M: Tensor) -> Tensor:
    """Ids of the values of one column, in their order; without sorting where these are integers close together."""
    if key_M.numel() and not key_M.is_floating_point():
        low, high = (int(end) for end in key_M.aminmax())
        if high - low < max(1024, 8 * key_M.numel()):
            place_M = key_M.long() - low
            there = torch.zeros(high - low + 1, dtype=torch.bool, device=key_M.device).index_fill(0, place_M, True)
            return (there.cumsum(0) - 1)[place_M]
    return torch.unique(key_M, return_inverse=True)[1]


def group_sum(value_M: Tensor, group_M: Tensor) -> Tensor:
    """[M] -> [num_groups]; NaN and infinities count as nothing."""
    num_groups = int(group_M.max()) + 1 if group_M.numel() else 0
    return value_M.new_zeros(num_groups).index_add_(0, group_M, value_M.where(torch.isfinite(value_M), 0))


def group_count(value_M: Tensor, group_M: Tensor) -> Tensor:
    """How many finite values each group has, [num_groups], in the dtype of `value_M`."""
    return group_sum(torch.isfinite(value_M).to(value_M.dtype), group_M)


def group_mean(value_M: Tensor, group_M: Tensor) -> Tensor:
    """[num_groups]; NaN for a group without a finite value."""
    return group_sum(value_M, group_M) / group_count(value_M, group_M)


def group_median(value_M: Tensor, group_M: Tensor) -> Tensor:
    """[num_groups]; the mean of the two middle values for an even count, NaN for a group without a finite value."""
    finite_M = torch.isfinite(value_M)
    num_groups = int(group_M.max()) + 1 if group_M.numel() else 0
    value, group = value_M[finite_M], group_M[finite_M]
    by_value = torch.argsort(value, stable=True)
    order = by_value[torch.argsort(group[by_value], stable=True)]
    value = value[order]
    count = torch.bincount(group, minlength=num_groups)
    start = torch.cumsum(count, 0) - count
    median = value_M.new_full((num_groups,), float("nan"))
    filled = count > 0
    low = start[filled] + (count[filled] - 1) // 2
    high = start[filled] + count[filled] // 2
    median[filled] = (value[low] + value[high]) / 2
    return median


def group_std(value_M: Tensor, group_M: Tensor, *, ddof: int) -> Tensor:
    """[num_groups], two-pass; 0 for a group with at most `ddof` finite values (nothing varies there)."""
    deviation_M = value_M - group_mean(value_M, group_M)[group_M]
    count = group_count(value_M, group_M)
    return torch.sqrt(group_sum(deviation_M**2, group_M) / (count - ddof).clamp_min(1))


def baseline(value_M: Tensor, group_M: Tensor, *, center: Center) -> Tensor:
    """What each value is compared with, [M].

    leave_one_out: the mean of the others; NaN for a row that has no others.
    """
    if center == "none":
        return torch.zeros_like(value_M)
    if center == "mean":
        return group_mean(value_M, group_M)[group_M]
    if center == "median":
        return group_median(value_M, group_M)[group_M]
    total, count = group_sum(value_M, group_M)[group_M], group_count(value_M, group_M)[group_M]
    others = (count - 1).clamp_min(0)
    return torch.where(others > 0, (total - value_M) / others, torch.nan)


def spread(value_M: Tensor, group_M: Tensor, *, scale: Scale, ddof: int = 0) -> Tensor:
    """What each deviation is divided by, [M]; mad is the median absolute deviation from the median, unscaled."""
    if scale == "none":
        return torch.ones_like(value_M)
    if scale == "std":
        return group_std(value_M, group_M, ddof=ddof)[group_M]
    deviation_M = (value_M - group_median(value_M, group_M)[group_M]).abs()
    return group_median(deviation_M, group_M)[group_M]
