"""The importance ratio of an action, of a unit of a row, or of a row, as the log-ratio that each action carries."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from grpo_mm.rollout.groups import group_ids
from grpo_mm.types import View

RatioOf = Literal["action", "row", "row_token", "unit", "product"]


def log_ratio(
    logprobs_NA: Tensor,
    old_logprobs_NA: Tensor,
    mask_NA: Tensor,
    *,
    ratio: RatioOf = "action",
    unit_NA: Tensor | None = None,
) -> Tensor:
    """log r of each action; 0 where masked, or where nothing of the row or unit is trained.

    action: logprob - old (any shape).
    row: their mean over the row's trained actions, so r is the geometric mean of the ratios (GSPO, arXiv:2507.18071, eq. 7).
    row_token: the value of `row` with the gradient of each action's own ratio (GSPO-token, section 4.3), for advantages that
    differ within a row.
    unit: the geometric mean within a unit of the row (Rank-GRPO, arXiv:2510.20150; released code). `unit_NA` [N, A], whole
    numbers; an action with one below 0 is on its own.
    product: their sum, the likelihood ratio of the whole row (RLOO, arXiv:2402.14740); only safe close to on-policy.

    Raises:
        ValueError: `unit` without `unit_NA`.
    """
    mask_NA = mask_NA.bool()
    log_ratio_NA = torch.where(mask_NA, logprobs_NA - old_logprobs_NA, 0.0)
    if ratio == "action":
        return log_ratio_NA
    if ratio == "unit":
        return _unit_mean(log_ratio_NA, mask_NA, unit_NA)
    total_N1 = log_ratio_NA.sum(-1, keepdim=True)
    if ratio == "product":
        return total_N1.expand_as(log_ratio_NA)
    mean_NA = (total_N1 / mask_NA.sum(-1, keepdim=True).clamp_min(1)).expand_as(log_ratio_NA)
    return mean_NA if ratio == "row" else mean_NA.detach() + log_ratio_NA - log_ratio_NA.detach()


def _unit_mean(log_ratio_NA: Tensor, mask_NA: Tensor, unit_NA: Tensor | None) -> Tensor:
    if unit_NA is None:
        raise ValueError("ratio = unit needs the unit of each action, [N, A].")
    row_NA = torch.arange(mask_NA.shape[0], device=mask_NA.device)[:, None].expand_as(mask_NA)
    unit_NA, alone_NA = unit_NA.long(), torch.arange(mask_NA.numel(), device=mask_NA.device).view(mask_NA.shape)
    unit = group_ids(row_NA.flatten(), torch.where(unit_NA < 0, -1 - alone_NA, unit_NA).flatten())
    total, count = (
        log_ratio_NA.new_zeros(unit.numel()).index_add(0, unit, value.flatten())
        for value in (log_ratio_NA, mask_NA.to(log_ratio_NA.dtype))
    )
    return (total / count.clamp_min(1))[unit].view_as(log_ratio_NA)


def row_mean(value_NA: Tensor, mask_NA: Tensor) -> Tensor:
    """The mean over each row's trained actions, [N]; 0 for a row without any."""
    kept_NA = torch.where(mask_NA.bool(), value_NA, 0.0)
    return kept_NA.sum(-1) / mask_NA.sum(-1).clamp_min(1)


def trained_rows(view: View) -> Tensor:
    """[<= N] int64, the rows of a whole view in which anything is trained."""
    return torch.nonzero(view.mask.any(-1)).flatten()
