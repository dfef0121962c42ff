"""Which pairs to compare when there is no budget for all of them, and how strong the compared things then are.

Axes: G things of one comparison set.

The model is Bradley-Terry: i wins over j with probability sigma(s_i - s_j). The strengths s are the mode of the
posterior under a weak prior; its curvature says how uncertain every difference s_i - s_j still is. The next pair is the
one that tells most about the strengths: p (1 - p) Var(s_i - s_j) is largest for two things that are close together
(p near 1/2) and little known (Var large), and log(1 + that) is by how much the log-determinant of the precision grows
with the comparison. So nothing is spent on the best against the worst once that is clear.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pairs = list[tuple[int, int]]

PRIOR = 0.5
"""Weight of the prior, in comparisons; see `bradley_terry`."""


def bradley_terry(win_GG: Tensor, *, prior: float = PRIOR) -> Tensor:
    """Strengths from a table of wins, on the scale of log-odds; for the average thing it is about 0.

    Each thing also plays `prior` imagined games against one of strength 0 and wins half of them. This keeps an
    undefeated thing finite, joins groups that never met, and changes no order of things that were all compared alike.

    Args:
        win_GG: win_GG[i, j] = how often i won over j, a tie is half a win for each; the diagonal is not read.
        prior: > 0.

    Returns:
        [G] float64, by Newton's method (the posterior is strictly log-concave), exact to rounding.

    Source: Bradley and Terry, Biometrika 39 (1952), with a prior after Caron and Doucet, arXiv:1011.1761 (theirs is a
    gamma density on exp(s); ours reads as games).
    """
    if prior <= 0:
        raise ValueError(f"prior = {prior}, wanted above 0: an undefeated thing would be infinitely strong.")
    win_GG = _without_diagonal(win_GG.double())
    strength_G = win_GG.new_zeros(len(win_GG))
    value = _log_posterior(win_GG, strength_G, prior)
    for _ in range(100):
        expected_GG = (win_GG + win_GG.T) * torch.sigmoid(strength_G[:, None] - strength_G)
        slope_G = (win_GG - expected_GG).sum(1) + prior * (0.5 - torch.sigmoid(strength_G))
        step_G = torch.linalg.solve(precision(win_GG, strength_G, prior=prior), slope_G)
        while (new := _log_posterior(win_GG, strength_G + step_G, prior)) < value and step_G.abs().max() > 1e-12:
            step_G = step_G / 2
        strength_G, value = strength_G + step_G, new
        if step_G.abs().max() < 1e-10:
            break
    return strength_G


def expected_win_rates(strength_G: Tensor) -> Tensor:
    """w_i = mean over all others j of sigma(s_i - s_j), [G]; they sum to G / 2. NaN for a single thing."""
    chance_GG = _without_diagonal(torch.sigmoid(strength_G[:, None] - strength_G))
    return chance_GG.sum(1) / (len(strength_G) - 1) if len(strength_G) > 1 else torch.full_like(strength_G, torch.nan)


def precision(win_GG: Tensor, strength_G: Tensor, *, prior: float = PRIOR) -> Tensor:
    """[G, G] curvature of the negative log-posterior; its inverse is the covariance of the strengths."""
    games_GG = _without_diagonal(win_GG + win_GG.T)
    weight_GG = games_GG * _bernoulli_variance(strength_G[:, None] - strength_G)
    return torch.diag(weight_GG.sum(1) + prior * _bernoulli_variance(strength_G)) - weight_GG


def all_pairs(size: int) -> Pairs:
    """Every unordered pair once: size (size - 1) / 2."""
    return [(i, j) for i in range(size) for j in range(i + 1, size)]


def opening_pairs(size: int, budget: int, generator: torch.Generator) -> Pairs:
    """The first round, before anything is known: the edges of a random cycle through all, at most `budget`.

    Every second edge comes first. So ceil(size / 2) comparisons already show everything once, size - 1 connect all,
    and with `size` each has met two others.
    """
    order = torch.randperm(size, generator=generator).tolist()
    edges = [(order[k], order[(k + 1) % size]) for k in range(size if size > 2 else size - 1)]
    return [(min(edge), max(edge)) for edge in (edges[0::2] + edges[1::2])[:budget]]


def next_pairs(win_GG: Tensor, asked_GG: Tensor, budget: int, *, prior: float = PRIOR) -> Pairs:
    """A round of disjoint pairs (so that they can be judged at once) that were not asked yet, the most telling first.

    Args:
        win_GG: as for `bradley_terry`.
        asked_GG: [G, G] symmetric bool; a judge that is asked twice says the same.
        budget: at most so many pairs.

    Returns:
        Up to min(budget, G // 2) pairs, i < j; empty if all were asked.
    """
    information_GG = _information(win_GG.double(), prior)
    # Rounding, so that equal values keep their order on every machine.
    ranked = sorted(all_pairs(len(win_GG)), key=lambda pair: -round(float(information_GG[pair]), 9))
    busy: set[int] = set()
    chosen: Pairs = []
    for i, j in ranked:
        if len(chosen) < budget and not asked_GG[i, j] and not busy & {i, j}:
            chosen.append((i, j))
            busy |= {i, j}
    return chosen


def _information(win_GG: Tensor, prior: float) -> Tensor:
    strength_G = bradley_terry(win_GG, prior=prior)
    covariance_GG = torch.linalg.inv(precision(win_GG, strength_G, prior=prior))
    variance_G = covariance_GG.diagonal()
    difference_GG = variance_G[:, None] + variance_G - 2 * covariance_GG
    return _bernoulli_variance(strength_G[:, None] - strength_G) * difference_GG


def _log_posterior(win_GG: Tensor, strength_G: Tensor, prior: float) -> float:
    log_chance_GG = torch.nn.functional.logsigmoid(strength_G[:, None] - strength_G)
    log_prior_G = torch.nn.functional.logsigmoid(strength_G) + torch.nn.functional.logsigmoid(-strength_G)
    return float((win_GG * log_chance_GG).sum() + prior / 2 * log_prior_G.sum())


def _bernoulli_variance(log_odds: Tensor) -> Tensor:
    chance = torch.sigmoid(log_odds)
    return chance * (1 - chance)


def _without_diagonal(table_GG: Tensor) -> Tensor:
    return table_GG - torch.diag(table_GG.diagonal())
