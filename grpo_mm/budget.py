"""Which prompts are sampled, and how often: pure functions of what is predicted of them."""

from __future__ import annotations

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
        ValueError: `total` lies outside P · at_least to P · at_most.

    Source: arXiv:2602.03584 (V_0), greedy allocation. Grade C; at_least is our choice (the first sample adds 0 anywhere).
    """
    prompts = len(success_P)
    at_most = total if at_most is None else at_most
    if not prompts * at_least <= total <= prompts * at_most:
        raise ValueError(
            f"{prompts} prompts with {at_least} to {at_most} samples each cannot have {total} in all; wanted "
            f"{prompts * at_least} to {prompts * at_most}."
        )
    count_n = torch.arange(at_least, at_most + 1, dtype=torch.float64)
    gain_Pn = budget_utility(count_n, success_P[:, None]).diff(dim=1)
    # A list is entered from its front, so a gain waits for the least one before it: greedy is the order of running minima.
    waits_Pn = gain_Pn.cummin(dim=1).values
    chosen = torch.argsort(waits_Pn.flatten(), descending=True, stable=True)[: total - prompts * at_least]
    return at_least + torch.bincount(chosen // max(1, waits_Pn.shape[1]), minlength=prompts)


def sampling_weights(
    value_P: Tensor, *, floor: float = 0.05, count_P: Tensor | None = None, gamma: float = 0.0
) -> Tensor:
    """Probabilities of prompts, [P]: in proportion to √(v(1 - v)) + floor, highest where success is a coin toss.

    Args:
        value_P: [P] tracked success in [0, 1].
        count_P, gamma: [P] effective counts α + β of the tracker; the weight is divided by count^gamma (paper notes; off in the
            release).

    Source: arXiv:2509.13232 (SPO), prioritised sampling; grade A with C.
    """
    weight_P = torch.sqrt(value_P.double() * (1 - value_P.double())) + floor
    if count_P is not None:
        weight_P = weight_P / count_P.double() ** gamma
    return weight_P / weight_P.sum()


def draw_prompts(weight_P: Tensor, *, count: int, generator: torch.Generator) -> Tensor:
    """[count] int64 positions, without replacement."""
    return torch.multinomial(weight_P, count, replacement=False, generator=generator)
