"""What a collector may ask for beside the rows of its step, and what it does with scored batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.groups import group_mean, group_std
from grpo_mm.types import Batch, Outputs, Prompt, Rollout, Rows, Scores

Sample = Callable[[Rows], tuple[Rollout, Outputs]]
Score = Callable[[Rollout, Outputs], dict[str, Scores]]


@dataclass(frozen=True)
class More:
    """What a collector may ask for beside its rows."""

    prompts: Callable[[int], tuple[Prompt, ...]]
    """The n-th further batch of prompts of the step, n from 1; the same on every rank."""
    groups: Callable[[tuple[Prompt, ...]], Rows]
    """This rank's rows of whole groups of some prompts."""
    samples: Callable[..., Rows]
    """This rank's rows of single samples, which may be none: samples(prompts, first_P=, count_P=, group_size=), see
    `grpo_mm.rollout.rows.further_rows`."""
    gather: Callable[[Any], list[Any]]
    """A small thing of every rank, in rank order."""
    generator: Callable[[str], torch.Generator]
    """A named random stream of the step, the same on every rank."""
    parts: int
    """Updates that the rows of a step are dealt to."""


def scored(sample: Sample, score: Score, rows: Rows) -> Batch:
    """Rows, sampled and scored."""
    rollout, outputs = sample(rows)
    return Batch(rollout, outputs, score(rollout, outputs))


def dealt(batch: Batch, parts: int) -> Batch:
    """With the update of each row: the prompts are cut into `parts` runs of whole groups."""
    return replace(batch, part_N=batch.rollout.prompt_N * parts // len(batch.rollout.prompts))


def join(batches: list[Batch], prompts: tuple[Prompt, ...]) -> Batch:
    """Batches that number the same prompts, as one."""
    rollouts = [replace(batch.rollout, prompts=prompts) for batch in batches]
    outputs = Outputs.cat([batch.outputs for batch in batches], rows=[r.num_rows for r in rollouts])
    first = batches[0].scores
    scores = {
        n: {part: torch.cat([b.scores[n][part] for b in batches]) for part in parts} for n, parts in first.items()
    }
    return Batch(Rollout.cat(rollouts), outputs, scores)


def all_scores(batch: Batch | None, metric: str | None, more: More, *, kind: str) -> tuple[Tensor, Tensor]:
    """(prompt [M], score [M]) of the reward `metric` (None: the only one) on all ranks, of which some may have no rows.

    `kind` is for the message.
    """
    ranks = more.gather(_scores(batch, metric, kind=kind))
    return torch.cat([p for p, _ in ranks]), torch.cat([s for _, s in ranks])


def per_prompt(value_M: Tensor, prompt_M: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """(mean, unbiased std) [P] of the finite values of each prompt; NaN and 0 for a prompt without any."""
    # One value that counts nowhere for each prompt, so that every prompt is there.
    value_M = torch.cat([value_M, torch.full((prompts,), torch.nan, dtype=value_M.dtype)])
    prompt_M = torch.cat([prompt_M, torch.arange(prompts)])
    return group_mean(value_M, prompt_M), group_std(value_M, prompt_M, ddof=1)


def _scores(batch: Batch | None, metric: str | None, *, kind: str) -> tuple[Tensor, Tensor]:
    if batch is None:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    name = next(iter(batch.scores)) if metric is None and len(batch.scores) == 1 else metric
    if name not in batch.scores:
        raise ConfigError(f"{kind}: metric = {metric}; there are {', '.join(sorted(batch.scores))}. Name one.")
    return batch.rollout.prompt_N[batch.outputs.row_M].cpu(), batch.scores[name]["score"].double().cpu()
