"""DAPO's dynamic sampling: samples on until enough groups teach something."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.advantages.masks.drop_degenerate import useful_groups
from grpo_mm.errors import ConfigError, TrainingStopped
from grpo_mm.rollout.collectors.more import More, Sample, Score, all_scores, dealt, join, scored
from grpo_mm.types import Batch, Outputs, Prompt, Rows, pick_items

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DynamicSampling:
    """Keeps the groups whose `metric` varies, and samples further prompts until there are `prompts_per_step` of them.

    Groups come in the order in which they were sampled and the surplus is cut. `oversample` × prompts_per_step prompts are
    sampled at a time, `max_batches` times at most; the recipe generates 1536 for 512 that it trains.

    metric: the reward to choose by (accuracy, not a shaped reward; it may have weight 0); None: the only one.
    drop: "constant" drops groups that do not vary, "best" only those that are all at `best` (NGRPO).
    when_short: what happens if there are too few useful groups by then. "train": a step trains on what there is; where
        nothing at all was useful it is the first prompts, which then teach nothing. "raise": the run stops.

    Source: arXiv:2503.14476 (DAPO), dynamic sampling; oversampling by 3 and a cap of 10 batches in its recipe. Grade A (verl).
    """

    metric: str | None = None
    """The reward to choose by; null: the only one."""
    drop: Literal["constant", "best"] = "constant"
    """constant: groups whose rewards are all equal go; best: only those that are all at `best`."""
    best: float = 1.0
    """The highest value of that reward."""
    max_batches: int = 10
    """Batches that are sampled for a step at most."""
    oversample: int = 1
    """Size of a batch, in multiples of prompts_per_step."""
    when_short: Literal["train", "raise"] = "train"
    """Too few useful groups after the last batch: train on what there is, or raise and stop the run."""

    def __post_init__(self) -> None:
        if self.max_batches < 1 or self.oversample < 1:
            raise ConfigError(
                f"dynamic_sampling: max_batches = {self.max_batches}, oversample = {self.oversample}; wanted at least 1."
            )

    def __call__(self, sample: Sample, score: Score, rows: Rows, more: More) -> list[Batch]:
        wanted = len(rows.prompts)
        found: list[Batch] = []
        prompts: list[Prompt] = []
        while len(prompts) < wanted and len(found) < self.max_batches:
            here = self._rows(len(found), rows, more)
            batch = scored(sample, score, here)
            useful = self._useful(batch, more)[: wanted - len(prompts)]
            if not found:
                first = batch
            found.append(pick_groups(batch, useful, start=len(prompts)))
            prompts += [here.prompts[p] for p in useful.tolist()]
        sampled = wanted * self.oversample * len(found)
        metrics = {"rollout/batches": float(len(found)), "rollout/used_frac": len(prompts) / sampled}
        if len(prompts) < wanted and self.when_short == "raise":
            raise TrainingStopped(
                f"dynamic_sampling: {len(prompts)} of {sampled} groups that were sampled teach anything, wanted {wanted} a "
                f"step. Raise max_batches = {self.max_batches}, choose prompts that are neither solved nor hopeless, or let "
                "a step train on what there is: when_short: train."
            )
        if not prompts:
            log.warning("dynamic_sampling: none of %d groups taught anything", sampled)
            joined = join([pick_groups(first, torch.arange(wanted), start=0)], rows.prompts)
        else:
            joined = join([batch for batch in found if len(batch.outputs)] or found[:1], tuple(prompts))
        return [dealt(replace(joined, metrics=metrics), more.parts)]

    def _rows(self, number: int, rows: Rows, more: More) -> Rows:
        """This rank's rows of what is sampled at the `number`-th time, from 0: the rows of the step come first."""
        if self.oversample == 1 and not number:
            return rows
        batches = range(number * self.oversample, (number + 1) * self.oversample)
        return more.groups(tuple(p for n in batches for p in (more.prompts(n) if n else rows.prompts)))

    def _useful(self, batch: Batch, more: More) -> Tensor:
        """The prompts of a batch that teach something, over all ranks, in order."""
        prompt_M, score_M = all_scores(batch, self.metric, more, kind="dynamic_sampling")
        useful_G = useful_groups(score_M, prompt_M, drop=self.drop, best=self.best)
        return prompt_M.unique()[useful_G]


def pick_groups(batch: Batch, prompts: Tensor, *, start: int) -> Batch:
    """The rows of some prompts, which are numbered from `start` on in that order.

    A rank without any keeps one row that nothing credits: it takes part in the others' forwards.
    """
    rollout, outputs = batch.rollout, batch.outputs
    number_P = torch.full((len(rollout.prompts),), -1)
    number_P[prompts] = start + torch.arange(len(prompts))
    kept = torch.nonzero(number_P[rollout.prompt_N] >= 0).flatten()
    alone = not len(kept)
    rows = torch.zeros(1, dtype=torch.int64) if alone else kept
    place_N = torch.full((rollout.num_rows,), -1)
    place_N[kept] = torch.arange(len(kept))
    kept_M = torch.nonzero(place_N[outputs.row_M] >= 0).flatten()
    items, item_M = torch.unique(outputs.item_index()[kept_M], return_inverse=True)
    picked = rollout.take(rows)
    picked = replace(
        picked,
        prompt_N=number_P[picked.prompt_N].clamp_min(0),
        mask_NA=picked.mask_NA & (not alone),
    )
    chosen = Outputs(
        items=pick_items(outputs.items, items),
        row_M=place_N[outputs.row_M[kept_M]],
        action_M=None if outputs.action_M is None else outputs.action_M[kept_M],
        tag_M=None if outputs.tag_M is None else outputs.tag_M[kept_M],
        item_M=item_M,
    )
    scores = {name: {part: value[kept_M] for part, value in parts.items()} for name, parts in batch.scores.items()}
    return Batch(picked, chosen, scores)
