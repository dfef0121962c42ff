"""DisCO and DRPO: raise the scores of a prompt's correct rows above those of its wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.objectives.clipped_ratio import MAX_LOG_RATIO
from grpo_mm.objectives.ratio import log_ratio, row_mean, trained_rows
from grpo_mm.rollout.groups import group_ids
from grpo_mm.types import Couples, Term, View

Score = Literal["log_likelihood", "ratio"]


def row_score(logprobs_NA: Tensor, old_logprobs_NA: Tensor, mask_NA: Tensor, *, score: Score) -> Tensor:
    """[N]: the mean log-probability of a row's actions (log-L), or the mean of their ratios (L-ratio).

    Source: arXiv:2505.12366 (DisCO), grade [A].
    """
    if score == "log_likelihood":
        return row_mean(logprobs_NA, mask_NA)
    return row_mean(log_ratio(logprobs_NA, old_logprobs_NA, mask_NA).clamp(max=MAX_LOG_RATIO).exp(), mask_NA)


def group_contrast(
    score_N: Tensor,
    correct_N: Tensor,
    group_N: Tensor,
    *,
    temperature: float | None = 10.0,
    preference_N: Tensor | None = None,
    preference_temperature: float = 0.1,
) -> Tensor:
    """J = Σ over positives w·s - τ·log mean over negatives exp(s/τ) of each group, [groups]; 0 without both kinds.

    Args:
        score_N: [N] with gradient. correct_N: [N] bool, the positives. group_N: [N] integer.
        temperature: τ; the smaller, the more the hardest negative counts. None: their plain mean (DisCO-b).
        preference_N: [N], e.g. shortness: positives are weighted by softmax(preference / preference_temperature) among the
            positives of their group (DRPO). None: equally.

    Source: arXiv:2505.12366 (DisCO), grade [A]; weights arXiv:2510.04474 (DRPO), grade [A]. The released
    DisCO takes a surrogate with the same gradient and another value.
    """
    group_N = group_ids(group_N)
    good_N = correct_N.bool()
    groups = int(group_N.max()) + 1 if group_N.numel() else 0
    good = _counts(good_N, group_N, groups), score_N[good_N], group_N[good_N]
    bad = _counts(~good_N, group_N, groups), score_N[~good_N], group_N[~good_N]
    if preference_N is None:
        positive_B = _sum(good[1], good[2], groups) / good[0].clamp_min(1)
    else:
        wish = preference_N[good_N].to(score_N.dtype) / preference_temperature
        wish = (wish - _amax(wish, good[2], groups)[good[2]]).exp()
        positive_B = _sum(wish * good[1], good[2], groups) / _sum(wish, good[2], groups).where(good[0] > 0, 1.0)
    if temperature is None:
        negative_B = _sum(bad[1], bad[2], groups) / bad[0].clamp_min(1)
    else:
        top_B = _amax(bad[1].detach() / temperature, bad[2], groups)
        sum_B = _sum((bad[1] / temperature - top_B[bad[2]]).exp(), bad[2], groups).where(bad[0] > 0, 1.0)
        negative_B = temperature * (top_B + (sum_B / bad[0].clamp_min(1)).log())
    return torch.where((good[0] > 0) & (bad[0] > 0), positive_B - negative_B, 0.0)


def _counts(chosen_N: Tensor, group_N: Tensor, groups: int) -> Tensor:
    return torch.bincount(group_N[chosen_N], minlength=groups)


def _sum(value: Tensor, group: Tensor, groups: int) -> Tensor:
    return value.new_zeros(groups).index_add(0, group, value)


def _amax(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups], 0 where a group has none."""
    return value.new_zeros(groups).scatter_reduce(0, group, value, "amax", include_self=False)


@dataclass(frozen=True)
class Disco:
    """-`group_contrast`, averaged over all prompts of the update, those without both kinds included.

    The trust region is a term of its own: {kind: hinge_kl}. No clip, no group weights: the advantages are not read.
    """

    score: Score = "log_likelihood"
    """What is contrasted: a row's mean log-probability (log_likelihood), or its mean ratio."""
    temperature: float | None = 10.0
    """τ: 10 goes with log_likelihood, 1 with ratio; null: DisCO-b."""
    positive: str = "positive"
    """A column, 1 for correct rows and 0 for wrong ones: {kind: mark_positive} makes it of a reward."""
    preference: str | None = None
    """A column by which positives are weighted (DRPO): {kind: shortness} makes one."""
    preference_temperature: float = 0.1
    """Of the softmax over preferences among the positives of a group."""
    weight: float = 1.0
    """Of this term in the loss."""

    def __post_init__(self) -> None:
        if (self.temperature is not None and self.temperature <= 0) or self.preference_temperature <= 0:
            raise ValueError(
                f"temperature = {self.temperature}, preference_temperature = {self.preference_temperature}; wanted above 0."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logprobs"})

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.positive} if self.preference is None else {self.positive, self.preference})

    @property
    def couples(self) -> Couples:
        return "group"

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        rows, mask = trained_rows(view), view.mask
        score_N = row_score(values["logprobs"], view.old_logprobs, mask, score=self.score)
        contrast_B = group_contrast(
            score_N[rows],
            row_mean(view.columns[self.positive], mask)[rows] > 0.5,
            view.group[rows, 0],
            temperature=self.temperature,
            preference_N=None if self.preference is None else row_mean(view.columns[self.preference], mask)[rows],
            preference_temperature=self.preference_temperature,
        )
        groups = max(1, len(contrast_B))
        stats = {"score": score_N.detach()[:, None].expand_as(mask)}
        return Term("policy", -self.weight * contrast_B, torch.ones_like(contrast_B), float(groups), stats=stats)
