"""The frame of a term that reads log-probabilities, gives a loss for each action, and averages it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from grpo_mm.objectives.aggregate import Aggregate, aggregate_weight
from grpo_mm.objectives.clipped_ratio import MAX_LOG_RATIO
from grpo_mm.objectives.ratio import log_ratio
from grpo_mm.types import Couples, Term, View


class LogprobTerm:
    """`loss` is what a term adds; `stats` what it logs of the ratio. Not a dataclass: the settings are the term's own fields."""

    aggregate: Aggregate
    weight: float

    needs = frozenset({"logprobs"})
    couples: Couples = "action"

    def loss(self, logprobs_NA: Tensor, old_logprobs_NA: Tensor, advantages_NA: Tensor, mask_NA: Tensor) -> Tensor:
        """[n, a], before `weight`."""
        raise NotImplementedError

    def stats(self, log_ratio_NA: Tensor, view: View) -> dict[str, Tensor]:
        return {"ratio": log_ratio_NA.clamp(max=MAX_LOG_RATIO).exp(), "approx_kl": 0.5 * log_ratio_NA**2}

    def __call__(self, values: Mapping[str, Tensor], view: View) -> Term:
        loss = self.loss(values["logprobs"], view.old_logprobs, view.advantage, view.mask)
        weight, denominator = aggregate_weight(view, self.aggregate)
        found = log_ratio(values["logprobs"].detach(), view.old_logprobs, view.mask)
        return Term("policy", self.weight * loss, weight, denominator, stats=self.stats(found, view))
