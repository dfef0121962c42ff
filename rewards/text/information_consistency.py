"""Does an answer carry as much information however the question was put? Entropy of words, and its gap over variants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpo_mm.rewards.text.text_overlap import words
from grpo_mm.rollout.groups import group_count, group_ids
from grpo_mm.types import Prompt


def word_entropy(tokens: Sequence[str]) -> float:
    """Shannon entropy of a text's words in bits, ≥ 0; 0 for an empty text."""
    if not tokens:
        return 0.0
    share = torch.tensor(list(Counter(tokens).values()), dtype=torch.float64) / len(tokens)
    return abs(float(-(share * share.log2()).sum()))


def helpfulness(entropy_U: Tensor, *, low: Tensor | float, high: Tensor | float) -> Tensor:
    """(H - low)/(high - low) within [0, 1], [U].

    Source: arXiv:2512.12858. Grade C.
    """
    return ((entropy_U - low) / (high - low)).clamp(0, 1)


def stability(entropy_VK: Tensor, *, max_gap: float) -> Tensor:
    """1 - mean over topics k of |H_ik - H_jk| / max_gap for every pair of variants, [V, V].

    Source: arXiv:2512.12858. Grade C.
    """
    return 1 - (entropy_VK[:, None] - entropy_VK).abs().mean(-1) / max_gap


def mean_stability(entropy_U: Tensor, group_U: Tensor, *, max_gap: float) -> Tensor:
    """The mean of `stability`, one topic, over an item's pairs with the others of its set, [U]; 1 for one that is alone."""
    group_U = group_ids(group_U)
    gap_UU = torch.where(group_U[:, None] == group_U, (entropy_U[:, None] - entropy_U).abs(), 0.0)
    others_U = (group_count(entropy_U, group_U)[group_U] - 1).clamp_min(1)
    return 1 - gap_UU.sum(1) / others_U / max_gap


@dataclass(frozen=True)
class InformationConsistency:
    """score = helpfulness_weight · `helpfulness` + stability_weight · `mean_stability`; both parts are logged.

    A comparison set is the group, whose samples are the variants of one question: each answers its own wording, with nothing
    of the others in its context.

    Trap: entropy is a crude proxy; gibberish scores high.

    Source: arXiv:2512.12858. Grade C; optimisation details unknown. Uncertain: what the least and greatest entropy are taken
    over (here settings, or the set's own), bits, and more than two variants (here the mean over an item's pairs). One topic
    per group; `stability` takes several.
    """

    scope: ClassVar[str] = "set"

    max_gap: float
    """In bits: the gap that counts as no stability at all."""
    low: float | None = None
    """Bits that count as no information; None: the least of the set."""
    high: float | None = None
    """Bits that count as most; None: the greatest of the set."""
    helpfulness_weight: float = 0.5
    """Of the information in a text."""
    stability_weight: float = 0.5
    """Of how little it differs from that of the other variants."""

    def __post_init__(self) -> None:
        if self.max_gap <= 0 or (self.low is not None and self.high is not None and self.low >= self.high):
            raise ValueError(
                f"max_gap = {self.max_gap}, low = {self.low}, high = {self.high}; wanted above 0, low < high."
            )

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt], group_U: Tensor) -> dict[str, Tensor]:
        entropy_U = torch.tensor([word_entropy(words(item)) for item in items], dtype=torch.float64)
        return self.of_entropy(entropy_U, group_U)

    def of_entropy(self, entropy_U: Tensor, group_U: Tensor) -> dict[str, Tensor]:
        """The reward of texts whose entropies are known; a set without any spread has helpfulness 0."""
        group_U = group_ids(group_U)
        size = int(group_U.max()) + 1 if group_U.numel() else 0
        ends = [
            entropy_U.new_zeros(size).scatter_reduce(0, group_U, entropy_U, how, include_self=False)[group_U]
            if given is None
            else torch.full_like(entropy_U, given)
            for given, how in ((self.low, "amin"), (self.high, "amax"))
        ]
        spread_U = ends[1] - ends[0]
        raw_U = helpfulness(entropy_U, low=ends[0], high=ends[0] + spread_U.where(spread_U > 0, 1.0))
        helpful_U = torch.where(spread_U > 0, raw_U, 0.0)
        stable_U = mean_stability(entropy_U, group_U, max_gap=self.max_gap)
        total_U = self.helpfulness_weight * helpful_U + self.stability_weight * stable_U
        return {"score": total_U, "helpfulness": helpful_U, "stability": stable_U}
