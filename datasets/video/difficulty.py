"""Choosing training rows by how well a model already does them."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_log_weight(iou_N: Tensor, *, mean: float, std: float, bins: int | None) -> Tensor:
    """[N] float64, log of the unnormalised weight with which each row should be drawn.

    Args:
        iou_N: [N] in 0..1, the model's IoU on each row, measured beforehand.
        mean, std: the Gaussian that the IoU of the drawn rows should follow.
        bins: equal bins on 0..1 of the histogram by whose counts the weights are divided, so that the drawn rows follow
            the Gaussian whatever the rows at hand look like. None: no such correction; common IoUs are then drawn more.

    Raises:
        ValueError: an IoU outside of 0..1 or NaN, std ≤ 0, or bins < 1.

    Source: TimeLens, arXiv:2512.14698 (code), mean 0.05, std 0.2, 20 bins; Time-R1, arXiv:2503.13377, mean 0.3, no
    correction (std 0.2 in its code, rows with IoU 0 left out before).
    """
    iou_N = torch.as_tensor(iou_N, dtype=torch.float64)
    if iou_N.ndim != 1 or not bool(((iou_N >= 0) & (iou_N <= 1)).all()):
        raise ValueError(
            "difficulties are IoUs, one for each row, between 0 and 1; Time-R1's files hold them times 100."
        )
    if not std > 0 or (bins is not None and bins < 1):
        raise ValueError(f"std = {std}, bins = {bins}: wanted above 0, and at least 1 or None.")
    log_weight_N = -0.5 * ((iou_N - mean) / std) ** 2
    if bins is None:
        return log_weight_N
    bin_N = (iou_N * bins).long().clamp_max(bins - 1)
    return log_weight_N - torch.bincount(bin_N, minlength=bins)[bin_N].double().log()


def draw_by_difficulty(
    iou_N: Tensor, count: int, *, seed: int, mean: float = 0.05, std: float = 0.2, bins: int | None = 20
) -> Tensor:
    """[min(count, N)] int64, rows drawn without replacement by `gaussian_log_weight`, in their own order.

    Each draw takes a row with probability proportional to its weight among those that are left (by Gumbel noise, so
    very small weights do not vanish).
    """
    if count < 1:
        raise ValueError(f"count = {count}, wanted at least 1.")
    log_weight_N = gaussian_log_weight(iou_N, mean=mean, std=std, bins=bins)
    generator = torch.Generator().manual_seed(seed)
    uniform_N = torch.rand(len(log_weight_N), generator=generator, dtype=torch.float64).clamp_min(1e-300)
    key_N = log_weight_N - torch.log(-torch.log(uniform_N))
    return torch.topk(key_N, min(count, len(key_N))).indices.sort().values


def still_to_learn(iou_N: Tensor, *, at_most: float = 0.70, drop_zero: bool = False) -> Tensor:
    """[N] bool, rows that stay for the next epoch: those the model does not yet do well.

    Args:
        drop_zero: also leave out rows with an IoU of exactly 0.

    Raises:
        ValueError: an IoU that is NaN. Rows whose answer could not be parsed count as 0.

    Source: Time-R1, arXiv:2503.13377, sample filtering: IoU ≤ 0.70. Its released code keeps 0 < IoU ≤ 0.70, which is
    `drop_zero`.
    """
    iou_N = torch.as_tensor(iou_N, dtype=torch.float64)
    if bool(iou_N.isnan().any()):
        raise ValueError("an IoU is NaN; an answer that cannot be parsed counts as 0.")
    return (iou_N <= at_most) & (iou_N > 0 if drop_zero else torch.ones_like(iou_N, dtype=torch.bool))
