"""Which prompts are sampled, and how often: pure functions of what is predicted of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def budget_utility(count: Tensor, success: Tensor) -> Tensor:
    """U(n, p) = n (1 - p) [1 - (1 - p)^(n - 1)], any shape.

    The expected number of failures that have at least one success among the other samples. 0 for one sample or none.

    Source: arXiv:2602.03584 (V_0). Grade C.
    """
    fail = 1 - success.double()
    return count * fail * (1 - fail ** (count - 1).clamp_min(0))


def allocate(success_P: Tensor, *, total: int, at_least: int = 1, at_most: int | None = None) -> Tensor:
    """How many samples each prompt gets, [P] int64: the next one always goes where it adds most to `budget_utility`.

    Args:
        success_P: [P] predicted success in [0, 1].
        total: samples in all. Every prompt gets `at_least` first; ties go to the earlier prompt.

    Raises:
        ValueError: `total` lies outside P · at_least to P · at_most; at_least below 1; a success outside [0, 1] or NaN.

    Source: arXiv:2602.03584 (V_0), greedy allocation. Grade C; at_least is our choice (the first sample adds 0 anywhere).
    """
    _check_success(success_P)
    if at_least < 1:
        raise ValueError(f"at_least = {at_least}; wanted 1 or more: the first sample of a prompt adds 0 by itself.")
    prompts = len(success_P)
    at_most = total if at_most is None else at_most
    if not prompts * at_least <= total <= prompts * at_most:
        raise ValueError(
            f"{prompts} prompts with {at_least} to {at_most} samples each cannot have {total} in all; wanted "
            f"{prompts * at_least} to {prompts * at_most}."
        )
    count_n = torch.arange(at_least, at_most + 1, dtype=torch.float64)
    gain_Pn = budget_utility(count_n, success_P[:, None]).diff(dim=1)
    return at_least + greedy(gain_Pn, total - prompts * at_least)


def _check_success(success_P: Tensor) -> None:
    wrong = success_P[~((success_P >= 0) & (success_P <= 1))]
    if len(wrong):
        raise ValueError(f"a predicted success is {float(wrong[0]):g}; wanted 0 to 1.")


def greedy(gain_Pn: Tensor, total: int) -> Tensor:
    """How many of `total` samples each prompt gets, [P] int64, if the next one always goes where its gain is highest.

    `gain_Pn`: [P, n] what the first, second, … further sample of a prompt is worth; -inf is never given. Ties go to the
    earlier prompt.
    """
    # A list is entered from its front, so a gain waits for the least one before it: greedy is the order of running minima.
    waits_Pn = gain_Pn.cummin(dim=1).values
    ranked = torch.sort(waits_Pn.flatten(), descending=True, stable=True)
    chosen = ranked.indices[:total][ranked.values[:total] > -torch.inf]
    return torch.bincount(chosen // max(1, waits_Pn.shape[1]), minlength=len(gain_Pn))


def sampling_weights(
    value_P: Tensor, *, floor: float = 0.05, count_P: Tensor | None = None, gamma: float = 0.0
) -> Tensor:
    """Probabilities of prompts, [P]: in proportion to √(v(1 - v)) + floor, highest where success is a coin toss.

    Args:
        value_P: [P] tracked success in [0, 1].
        count_P, gamma: [P] effective counts α + β of the tracker; the weight is divided by count^gamma (paper notes; off in the
            release).

    Raises:
        ValueError: a value outside [0, 1] or NaN; a floor that is not above 0.

    Source: arXiv:2509.13232 (SPO), prioritised sampling; grade A with C.
    """
    _check_success(value_P)
    if floor <= 0:
        raise ValueError(f"floor = {floor}; wanted above 0, or what is always or never solved is never drawn.")
    weight_P = torch.sqrt(value_P.double() * (1 - value_P.double())) + floor
    if count_P is not None:
        weight_P = weight_P / count_P.double() ** gamma
    return weight_P / weight_P.sum()


def draw_prompts(weight_P: Tensor, *, count: int, generator: torch.Generator) -> Tensor:
    """[count] int64 positions, without replacement."""
    return torch.multinomial(weight_P, count, replacement=False, generator=generator)


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


def sampling_priority(
    std_Q: Tensor, count_Q: Tensor, *, total: int, confidence: float = 0.95, slope: float = 1.0
) -> Tensor:
    """`expected_shrinkage` + `exploration`, [Q]: the prompt with the highest gets the next samples.

    Args:
        std_Q: [Q] sample standard deviation of a prompt's rewards so far.
        count_Q: [Q] its samples so far, or in any shape what they may become.
        total: samples of all prompts so far.

    A prompt whose rewards are all equal has exploration only, and goes on being sampled: cap its count.
    """
    return expected_shrinkage(std_Q, count_Q, confidence=confidence) + exploration(count_Q, total=total, slope=slope)
