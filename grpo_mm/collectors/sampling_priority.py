"""Which prompt deserves the next samples: the allocator of XRPO as pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def half_width(std_Q: Tensor, count_Q: Tensor, t_Q: Tensor) -> Tensor:
    """Of the confidence interval of a mean, t · std / √n, [Q]."""
    return t_Q * std_Q / count_Q.sqrt()


def student_t(count_Q: Tensor, *, confidence: float) -> Tensor:
    """The two-sided quantile with n - 1 degrees of freedom, [Q]; infinite for n < 2."""
    from scipy.stats import t

    quantile = t.ppf(0.5 + confidence / 2, (count_Q - 1).clamp_min(1).cpu().numpy())
    return torch.where(count_Q > 1, torch.as_tensor(quantile, dtype=torch.float64), torch.inf)


def expected_shrinkage(std_Q: Tensor, count_Q: Tensor, *, confidence: float = 0.95) -> Tensor:
    """How much narrower one more sample would make the interval, [Q] ≥ 0; infinite for a prompt of fewer than 2 samples.

    Source: arXiv:2510.06672 (XRPO). Grade C. Uncertain: whether the quantile follows the count (here it does not).
    """
    count_Q = count_Q.double()
    t_Q = student_t(count_Q, confidence=confidence)
    known_Q = torch.where(count_Q > 1, t_Q, 0.0)
    shrunk_Q = half_width(std_Q, count_Q.clamp_min(1), known_Q) - half_width(std_Q, count_Q + 1, known_Q)
    return torch.where(count_Q > 1, shrunk_Q.double(), torch.inf)


def exploration(count_Q: Tensor, *, total: int, slope: float = 1.0) -> Tensor:
    """slope · √(log(1 + total) / n), [Q]: what has been sampled little is looked at again; infinite for n = 0.

    Source: arXiv:2510.06672 (XRPO). Grade C; the shape of an upper confidence bound, its constant uncertain.
    """
    explored_Q = slope * (math.log1p(total) / count_Q.double()).sqrt()
    return torch.where(count_Q > 0, explored_Q, torch.inf)


def sampling_priority(std_Q: Tensor, count_Q: Tensor, *, confidence: float = 0.95, slope: float = 1.0) -> Tensor:
    """`expected_shrinkage` + `exploration`, [Q]: the prompt with the highest gets the next samples.

    Args:
        std_Q: [Q] sample standard deviation of a prompt's rewards so far.
        count_Q: [Q] its samples so far.

    A prompt whose rewards are all equal has exploration only, and goes on being sampled: cap its count.
    """
    total = int(count_Q.sum())
    return expected_shrinkage(std_Q, count_Q, confidence=confidence) + exploration(count_Q, total=total, slope=slope)
