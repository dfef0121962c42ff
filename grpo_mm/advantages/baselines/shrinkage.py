"""V_0.5: the mean of a few samples, shrunk towards what a value model predicts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from grpo_mm.rollout.groups import group_count, group_ids, group_mean
from grpo_mm.rollout.table import Table


def data_weight(gap_B: Tensor, count_B: Tensor, *, noise: float = 1.0) -> Tensor:
    """How far the mean of samples is believed against the prior: w = D²/(D² + noise/k), [B].

    D² = max(0, gap² - noise/k): a gap that noise explains leaves the prior alone.

    Args:
        gap_B: [B] mean of the samples minus the prior.
        count_B: [B] samples k of each.
        noise: bound of one sample's variance, (range/2)²: 1 for rewards -1 and 1.
    """
    variance_B = noise / count_B
    bias_B = (gap_B**2 - variance_B).clamp_min(0)
    return bias_B / (bias_B + variance_B)


def shrunk_baseline(reward_N: Tensor, group_N: Tensor, prior_N: Tensor, *, noise: float = 1.0) -> Tensor:
    """b = w · mean + (1 - w) · prior, [N] float64, with w of `data_weight`.

    Args:
        reward_N: [N]; NaN rows take no part.
        prior_N: [N] the predicted mean reward in the reward's unit, the same for all rows of a group; NaN: no prediction, the
            baseline is the mean.

    Source: arXiv:2603.10848 (V_0.5). Grade C: third-party notes.
    """
    reward_N, group_N = reward_N.double(), group_ids(group_N)
    mean_B, prior_B = group_mean(reward_N, group_N), group_mean(prior_N.double(), group_N)
    weight_B = data_weight(mean_B - prior_B, group_count(reward_N, group_N), noise=noise)
    shrunk_B = weight_B * mean_B + (1 - weight_B) * prior_B
    return shrunk_B.where(prior_B.isfinite(), mean_B)[group_N]


def draw_another(
    mean_B: Tensor,
    prior_B: Tensor,
    count_B: Tensor,
    *,
    noise: float = 1.0,
    cost: float = 1 / 256,
    at_least: int = 4,
    at_most: int = 16,
) -> Tensor:
    """True where one more sample of a prompt pays: noise·w_k/k - noise·w_{k+1}/(k + 1) > cost, [B] bool.

    D² is held while looking one step ahead. With w = 1 it stops at k = 16 for the default cost.

    Source: arXiv:2603.10848 (V_0.5). The exact form is our derivation (uncertain); it reproduces the published cap.
    """
    mean_B, count_B = mean_B.double(), count_B.double()
    bias_B = ((mean_B - prior_B) ** 2 - noise / count_B).clamp_min(0)
    now_B, then_B = (_error(bias_B, noise / k) for k in (count_B, count_B + 1))
    return ((now_B - then_B > cost) | (count_B < at_least)) & (count_B < at_most)


def _error(bias_B: Tensor, variance_B: Tensor) -> Tensor:
    """Estimated mean squared error of the shrunk baseline."""
    return bias_B / (bias_B + variance_B) * variance_B


@dataclass(frozen=True)
class Shrinkage:
    """reward - `shrunk_baseline`, by the column `prior`, the predicted success in [0, 1] of each row's prompt.

    `low`, `high`: the rewards of failure and success. A group whose rewards are all equal still earns something: its distance
    to the prior. Any prior serves: a value model, a tracker, the difficulty of the data set.

    Source: arXiv:2603.10848 (V_0.5). Grade C; whether a scale follows is not confirmed: none here. It wants three samples:
    the mean of two takes three values, and the test against the prior misfires.
    """

    low: float = -1.0
    """The reward of failure."""
    high: float = 1.0
    """The reward of success."""
    by: str = "prior"
    """The column with the predicted success, in [0, 1]."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    min_group_size = 3
    why = "It is the success that a value model or a tracker predicts for the prompt, in [0, 1]."

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.by})

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low}, high = {self.high}; wanted the rewards of failure and of success.")

    def __call__(self, table: Table) -> Table:
        group_M = table.key(self.key)
        prior_M = self.low + (self.high - self.low) * table.columns[self.by].double()
        noise = (self.high - self.low) ** 2 / 4
        return table.with_values(
            {n: v.double() - shrunk_baseline(v, group_M, prior_M, noise=noise) for n, v in table.values.items()}
        )
