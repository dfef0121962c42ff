"""Held-out evaluation: deterministic pictures or texts, all rewards, watches and benchmarks, statistics, diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpo_mm.config.checks import check_benchmarks
from grpo_mm.config.run_config import RunConfig
from grpo_mm.looking.diversity import pairwise_distance
from grpo_mm.processes.clock import phase
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.rows import evaluation_rows, seen_by
from grpo_mm.rollout.scoring import Scoring, mean_scores
from grpo_mm.training.benchmarks import benchmark_scores
from grpo_mm.training.held_out import ByPrompt, by_prompt, diversity_by_prompt, score_by_prompt
from grpo_mm.training.held_out_statistics import held_out_statistics
from grpo_mm.types import (
    Clips,
    Pictures,
    Prompt,
    Rows,
    is_pictures,
    is_relative,
    is_seen,
    pick_items,
    shown_items,
    sound_items,
)


@dataclass(frozen=True)
class EvalResult:
    """Metrics are the same on every rank; what is shown are some of rank 0's first samples."""

    metrics: dict[str, float]
    """"eval/score" is the weighted sum of reward means: the held-out score. Rewards that no prompt asks for, or that
    compare samples with each other, take no part; if there are no others it is the weighted sum of what is watched."""
    shown: Tensor | Clips | list[str | None]
    """uint8 pictures [m, 3, H, W], or m clips or texts; None for one that could not be asked, or came to nothing."""
    shown_prompts: list[Prompt]
    shown_rewards: dict[str, Tensor]
    scored: Scored
    """Row by row, of this rank."""
    ids: tuple[str, ...] = ()
    by_prompt: ByPrompt = field(default_factory=dict)
    """What the means in `metrics` are means of, by metric without eval/; aligned with `ids`."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What one rank asked and how it was scored."""

    rows: Rows
    prompts: list[Prompt]
    """Of each row."""
    items: Any
    """N pictures or texts; None for one that came to nothing."""
    scores: Mapping[str, Mapping[str, Tensor]]
    """Of rewards: name → part → [N], NaN where it does not apply or failed."""
    watched: Mapping[str, Mapping[str, Tensor]]
    score_weights: Mapping[str, float]
    """Metric → its weight in "eval/score"."""
    shown_m: Tensor
    """The rows that are shown."""


def evaluate(
    config: RunConfig, policy: Any, prompts: tuple[Prompt, ...], rewards: Scoring, watch: Scoring, processes: Processes
) -> EvalResult:
    """Asks every prompt `samples_per_prompt` times and scores the result."""
    check_benchmarks(config)
    settings = config.evaluation
    prompts = seen_by(policy, prompts)
    rows = evaluation_rows(prompts, samples=settings.samples_per_prompt, rank=processes.rank, world=processes.world)
    row_prompts = [prompts[p] for p in rows.prompt_N.tolist()]
    with phase("eval"):
        items = config.engine.render(policy, rows, seed=settings.seed) if len(rows) else []
        scores = rewards(items, row_prompts)
        watched = watch(items, row_prompts)
    metrics = mean_scores(
        scores, processes, prefix="eval", names={"score": "mean"}, applied=rewards.applied(row_prompts)
    )
    metrics |= mean_scores(watched, processes, prefix="eval", names={}, applied=watch.applied(row_prompts))
    images, sound = sound_items(items if is_seen(items) else Pictures())
    metrics |= benchmark_scores(config.evaluation.benchmarks, items, rows, processes)
    metrics |= _by_source(scores, row_prompts, list(config.eval_prompts), processes, rewards)
    asked = rewards.applied(prompts)
    absolute = {n: s for n, s in config.rewards.items() if s.weight and asked[n] and not is_relative(s.use)}
    if absolute or not watched:
        score_weights = {f"eval/{name}/mean": s.weight for name, s in absolute.items()}
    else:  # rewards that compare samples of a group say nothing of progress
        entries = config.watched_rewards
        score_weights = {f"eval/{n}/score": entries[n].weight for n in watched if entries[n].weight}
    metrics["eval/score"] = sum(weight * metrics[name] for name, weight in score_weights.items())
    alone = by_prompt(scores, rows, processes, names={"score": "mean"})
    alone |= by_prompt(watched, rows, processes, names={})
    bare = {name.removeprefix("eval/"): weight for name, weight in score_weights.items()}
    alone = {"score": score_by_prompt(alone, bare)} | alone
    diversity = pairwise_distance(images, rows.prompt_N[sound]) if len(images) else torch.zeros(0)
    ranks = processes.gather((float(diversity.nansum()), int(diversity.isfinite().sum())))
    if sum(n for _, n in ranks):
        metrics["eval/diversity"] = sum(s for s, _ in ranks) / sum(n for _, n in ranks)
        alone["diversity"] = diversity_by_prompt(diversity, len(prompts), processes)
    measured, found = held_out_statistics(items, rows, row_prompts, sketch=config.sketch, processes=processes)
    metrics |= measured
    alone |= _parts_by_source(alone, prompts, list(config.eval_prompts)) | found
    first = torch.nonzero(rows.sample_N == 0).flatten()
    first = first[torch.linspace(0, len(first) - 1, min(settings.show, len(first))).long()] if len(first) else first
    return EvalResult(
        metrics=dict(sorted(metrics.items())),
        shown=shown_items(pick_items(items, first)) if is_pictures(items) else pick_items(items, first),
        shown_prompts=[row_prompts[i] for i in first.tolist()],
        shown_rewards={name: parts["score"][first] for name, parts in scores.items()},
        ids=tuple(prompt.id for prompt in prompts),
        by_prompt=alone,
        scored=Scored(rows, row_prompts, items, scores, watched, score_weights, first),
    )


def _parts_by_source(alone: ByPrompt, prompts: Sequence[Prompt], sources: Sequence[str]) -> ByPrompt:
    """The same of each source's own prompts alone, where there are several."""
    return {
        f"{source}/{name}": [v if p.source == source else None for v, p in zip(values, prompts, strict=True)]
        for source in (sources if len(sources) > 1 else ())
        for name, values in alone.items()
        if "/" in name
    }


def _by_source(
    scores: Mapping[str, Mapping[str, Tensor]],
    row_prompts: Sequence[Prompt],
    sources: Sequence[str],
    processes: Processes,
    rewards: Scoring,
) -> dict[str, float]:
    """The means of each source's own prompts, as `eval/SOURCE/NAME/part`, where there are several sources."""
    found: dict[str, float] = {}
    for source in sources if len(sources) > 1 else ():
        own = torch.tensor([i for i, p in enumerate(row_prompts) if p.source == source], dtype=torch.int64)
        applied = rewards.applied([row_prompts[i] for i in own.tolist()])
        here = {name: {part: value[own] for part, value in parts.items()} for name, parts in scores.items()}
        found |= mean_scores(here, processes, prefix=f"eval/{source}", names={"score": "mean"}, applied=applied)
    return {name: value for name, value in found.items() if value == value}
