"""Samples go where they teach most: a few of each prompt, then more by a rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from grpo_mm.advantages.baselines.shrinkage import draw_another
from grpo_mm.advantages.state.value_tracker import ValueTracker
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rollout.collectors.budget import allocate, greedy, sampling_priority
from grpo_mm.rollout.collectors.more import More, Sample, Score, all_scores, dealt, join, per_prompt, scored
from grpo_mm.rollout.table import prompt_ids
from grpo_mm.types import Batch, Rows


@dataclass(frozen=True)
class SoFar:
    """What is known of the prompts of a step. Rewards are mapped to [0, 1], failure to success."""

    count_P: Tensor
    """[P] int64, samples drawn."""
    mean_P: Tensor
    """[P] of their rewards; NaN where none was scored."""
    std_P: Tensor
    """[P] unbiased; 0 for fewer than two."""
    prior_P: Tensor
    """[P] success that was predicted before the step."""
    left: int
    """Samples of the step's budget that are not drawn yet."""
    most: int
    """The most samples that a prompt may have."""


class Rule(Protocol):
    def __call__(self, so_far: SoFar) -> Tensor:
        """How many further samples each prompt gets now, [P] int64; all 0 ends the sampling of the step."""
        ...


@dataclass(frozen=True)
class BySuccess:
    """The rest of the budget at once, greedily by `budget_utility` of the predicted success.

    Source: arXiv:2602.03584 (V_0). Grade C. The success is a tracker's here, not that of V_0's value model.
    """

    def __call__(self, so_far: SoFar) -> Tensor:
        least = int(so_far.count_P.min())
        total = min(int(so_far.count_P.sum()) + so_far.left, so_far.most * len(so_far.count_P))
        return allocate(so_far.prior_P, total=total, at_least=least, at_most=so_far.most) - so_far.count_P


@dataclass(frozen=True)
class ByUncertainty:
    """The budget in `rounds`, each greedily by `sampling_priority`: the width of the reward's interval, and exploration.

    Source: arXiv:2510.06672 (XRPO), three phases of which the first is the collector's `first`. Grade C; constants uncertain.
    """

    rounds: int = 2
    """In how many parts the rest of the budget is given out."""
    confidence: float = 0.95
    """Of the interval around a prompt's mean reward, in (0, 1)."""
    slope: float = 0.1
    """Of the exploration; ours. With 1 it outweighs the interval, and prompts get nearly equal shares."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.confidence < 1 or self.slope < 0:
            raise ConfigError(
                f"by_uncertainty: rounds = {self.rounds}, confidence = {self.confidence}, slope = {self.slope}; wanted at least 1, "
                "a number between 0 and 1, and 0 or more."
            )

    def __call__(self, so_far: SoFar) -> Tensor:
        budget = int(so_far.count_P.sum()) + so_far.left
        chunk = min(-(-budget // (self.rounds + 1)), so_far.left)
        ahead_n = torch.arange(so_far.most)
        count_Pn = so_far.count_P[:, None] + ahead_n
        priority_Pn = sampling_priority(
            so_far.std_P[:, None],
            count_Pn,
            total=int(so_far.count_P.sum()),
            confidence=self.confidence,
            slope=self.slope,
        )
        return greedy(priority_Pn.masked_fill(count_Pn >= so_far.most, -torch.inf), chunk)


@dataclass(frozen=True)
class LookAhead:
    """One more sample of each prompt of which `draw_another` says that it pays, while the budget lasts.

    Source: arXiv:2603.10848 (V_0.5). Grade C, the stopping rule is our derivation.
    """

    cost: float = 1 / 256
    """What one more sample costs, in units of the expected squared error that it saves."""

    def __post_init__(self) -> None:
        if self.cost <= 0:
            raise ConfigError(f"look_ahead: cost = {self.cost}; wanted above 0, or every prompt gets all it may.")

    def __call__(self, so_far: SoFar) -> Tensor:
        # In rewards of -1 and 1, where one sample's variance is at most 1.
        mean_P, prior_P = 2 * so_far.mean_P.nan_to_num(0.5) - 1, 2 * so_far.prior_P - 1
        pays_P = draw_another(mean_P, prior_P, so_far.count_P, cost=self.cost, at_least=1, at_most=so_far.most)
        return (pays_P & (pays_P.cumsum(0) <= so_far.left)).long()


@dataclass(frozen=True)
class Allocate:
    """`first` samples of each prompt, then more by a rule, until it asks for none; a prompt gets at most `most`.

    The budget of a step is prompts_per_step × group_size. Groups differ in size, so an engine whose samples form a tree
    over the group is refused. The rollout gets a column `prior`, the success in [0, 1] predicted by the collector's own
    tracker, which follows the rewards like the stage {kind: value_tracker}.

    metric: the reward that rules look at; None: the only one. The tracker's `low` and `high` are its failure and success.
    """

    rule: Annotated[Any, Role("allocation")]
    """Who gets the further samples."""
    first: int = 2
    """Samples that every prompt gets."""
    most: int = 16
    """Samples of a prompt at most."""
    metric: str | None = None
    """The reward that the rule looks at; null: the only one."""
    tracker: ValueTracker = field(default_factory=ValueTracker)
    """How the success of each prompt is followed."""

    ragged = True
    makes = frozenset({"prior"})

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.most:
            raise ConfigError(f"allocate: first = {self.first}, most = {self.most}; wanted 1 ≤ first ≤ most.")

    def __call__(self, sample: Sample, score: Score, rows: Rows, more: More) -> list[Batch]:
        prompts = rows.prompts
        prior_P = self.tracker.values(prompt_ids(prompts))
        count_P = torch.zeros(len(prompts), dtype=torch.int64)
        further_P = torch.full_like(count_P, self.first)
        budget = len(prompts) * rows.group_size
        found: list[Batch] = []
        rounds = 0
        prompt_M, score_M = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        while int(further_P.sum()):
            here = more.samples(prompts, first_P=count_P, count_P=further_P, group_size=self.most)
            count_P = count_P + further_P
            batch = scored(sample, score, here) if len(here) else None
            rounds += 1
            found += [batch] if batch else []
            new_prompt_M, new_score_M = all_scores(batch, self.metric, more, kind="allocate")
            prompt_M, score_M = torch.cat([prompt_M, new_prompt_M]), torch.cat([score_M, new_score_M])
            success_M = self.tracker.success(score_M)
            mean_P, std_P = per_prompt(success_M, prompt_M, len(prompts))
            left = max(0, budget - int(count_P.sum()))
            further_P = self.rule(SoFar(count_P, mean_P, std_P, prior_P, left, self.most))
        joined = join(found, prompts)
        columns = {**joined.rollout.columns, "prior": prior_P[joined.rollout.prompt_N]}
        metrics = {
            "rollout/rounds": float(rounds), "rollout/samples": float(count_P.sum()),
            "rollout/group_size_min": float(count_P.min()), "rollout/group_size_max": float(count_P.max()),
        }  # fmt: skip
        rollout = replace(joined.rollout, columns=columns)
        return [dealt(replace(joined, rollout=rollout, metrics=metrics), more.parts)]
