"""Held-out scores prompt by prompt, the same whatever the number of ranks: what a standard error is computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from grpo_mm.processes.distributed import Processes
from grpo_mm.types import Rows

ByPrompt = dict[str, list[float | None]]
"""By metric, as in the record without eval/: a value for each held-out prompt, the mean over its samples; None = none."""


def by_prompt(
    scores: Mapping[str, Mapping[str, Tensor]], rows: Rows, processes: Processes, *, names: Mapping[str, str]
) -> ByPrompt:
    """The scores and parts of all ranks by prompt, as `NAME/part`; `names` renames a part ("score": "mean")."""
    place = list(zip(rows.prompt_N.tolist(), rows.sample_N.tolist()))
    local = {
        (name, part): [(p, sample, float(v)) for (p, sample), v in zip(place, values.double().tolist(), strict=True)]
        for name, parts in scores.items()
        for part, values in parts.items()
    }
    ranks = processes.gather(local)
    found: ByPrompt = {}
    for name, part in sorted(set().union(*ranks), key=lambda key: (key[0], key[1] == "score", key[1])):
        taken = sorted(one for rank in ranks for one in rank.get((name, part), ()))
        found[f"{name}/{names.get(part, part)}"] = _means(taken, len(rows.prompts))
    return found


def diversity_by_prompt(diversity_G: Tensor, prompts: int, processes: Processes) -> list[float | None]:
    """Of what each rank measured of its prompts [G]; NaN = not measured."""
    ranks = processes.gather(diversity_G.tolist())
    taken = [(p, 0, value) for rank in ranks for p, value in enumerate(rank)]
    return _means(sorted(taken, key=lambda one: one[:2]), prompts)


def score_by_prompt(found: Mapping[str, Sequence[float | None]], weights: Mapping[str, float]) -> list[float | None]:
    """Values whose mean over the prompts is the weighted sum of the means of these metrics.

    A metric that applies to n of N prompts, mean m, gives m + (v - m) · N / n to those and m to the others: the deviations from
    the mean are the influence of each prompt on the sum, so that their standard error is the sum's.
    """
    size = len(next(iter(found.values()), ()))
    total = [0.0] * size
    for name, weight in weights.items():
        values = found[name]
        own = [value for value in values if value is not None]
        if not own:
            return [None] * size
        mean = math.fsum(own) / len(own)
        for p, value in enumerate(values):
            total[p] += weight * (mean if value is None else mean + (value - mean) * size / len(own))
    return total


def _means(taken: Sequence[tuple[int, int, float]], prompts: int) -> list[float | None]:
    values: dict[int, list[float]] = {}
    for p, _, value in taken:
        if math.isfinite(value):
            values.setdefault(p, []).append(value)
    return [float(f"{math.fsum(own) / len(own):.7g}") if (own := values.get(p)) else None for p in range(prompts)]
