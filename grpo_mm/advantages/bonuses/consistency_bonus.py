"""GRPO-CARE: a bonus for right answers that their own reasoning makes likely, compared with the group's other right ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.advantages.shared.one_reward import OneReward
from grpo_mm.advantages.shared.ranges import not_below_zero
from grpo_mm.rollout.groups import group_ids, group_mean
from grpo_mm.rollout.table import Table


def consistent(
    accuracy_N: Tensor,
    likelihood_N: Tensor,
    group_N: Tensor,
    *,
    least: float = 0.1,
    cap: float = 0.95,
    margin: float = 0.01,
) -> Tensor:
    """[N] bool: rows of the candidate set whose likelihood reaches the set's mean minus `margin`.

    A group's candidates are the rows whose accuracy is above `least` and no less than the group's mean. Likelihoods count up to
    `cap`, so that trivial certainty brings nothing more. A lone candidate is always consistent.

    Args:
        accuracy_N: [N]; NaN rows are no candidates and do not count in the mean.
        likelihood_N: [N] of the answer, given prompt and reasoning, by a slow copy of the policy; NaN (no answer found): no
            candidate.

    Source: arXiv:2506.16141 (GRPO-CARE), algorithm 1, and its released code, whose strict "above .1" this follows; grades A, B.
    The mean is that of the group, as in the paper; the code's is over a device's batch.
    """
    group_N, accuracy_N = group_ids(group_N), accuracy_N.double()
    mean_N = group_mean(accuracy_N, group_N)[group_N]
    candidate_N = (accuracy_N > least) & (accuracy_N >= mean_N) & likelihood_N.isfinite()
    clipped_N = likelihood_N.double().clamp_max(cap)
    bar_N = group_mean(clipped_N.where(candidate_N, torch.nan), group_N)[group_N] - margin
    return candidate_N & (clipped_N >= bar_N)


@dataclass(frozen=True)
class ConsistencyBonus(OneReward):
    """Adds `weight` · accuracy to the reward `target` of rows that are `consistent`; it goes before `weighted_sum`.

    The rollout declares `answer_likelihood`: {answer_likelihood: {of: ema}} in the engine.
    """

    target: str | None = None
    """The reward that is changed; null: the only one there is."""
    weight: float = 0.5
    """Of the accuracy that consistent rows get on top."""
    least: float = 0.1
    """Accuracy above which a row is a candidate."""
    cap: float = 0.95
    """Likelihoods above it count as it."""
    margin: float = 0.01
    """By how much a likelihood may lie below the candidates' mean."""
    key: tuple[str, ...] = ("prompt",)
    """The comparison set: columns of the table; rows that agree in all of them are compared."""

    stage = "consistency_bonus"
    min_group_size = 2
    columns = frozenset({"answer_likelihood"})
    why = "It is how likely a slow copy of the policy finds the answer: engine.answer_likelihood={of: ema}."

    def __post_init__(self) -> None:
        not_below_zero(weight=self.weight, cap=self.cap, margin=self.margin)

    def changed(self, value_M: Tensor, table: Table) -> Tensor:
        earns_M = consistent(
            value_M, table.columns["answer_likelihood"], table.key(self.key),
            least=self.least, cap=self.cap, margin=self.margin,
        )  # fmt: skip
        return torch.where(earns_M, (1 + self.weight) * value_M, value_M)
