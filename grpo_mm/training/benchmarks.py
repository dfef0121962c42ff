"""Figures of a whole held-out set that are no mean over rows: average precision, the better of two answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from grpo_mm.errors import ConfigError
from grpo_mm.processes.distributed import Processes
from grpo_mm.types import Prompt, Rows, is_seen


class Benchmark(Protocol):
    """Scores all texts of a held-out set at once.

    `texts` and `prompts` are aligned, in one order whatever the number of ranks: by prompt, then by sample. A text is None
    where the prompt's media could not be read: it counts as unanswered and stays in the denominator. Figures are shares
    of 1. An attribute `sources` (names, or None for all) and a method `applies_to(prompt)` say which prompts it is asked
    about.
    """

    def __call__(self, texts: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]: ...


def benchmark_scores(
    benchmarks: Mapping[str, Benchmark], items: Any, rows: Rows, processes: Processes
) -> dict[str, float]:
    """`eval/NAME/metric` of each benchmark over the rows of all ranks; the same on every rank.

    Args:
        items: what this rank made of `rows`.

    Raises:
        ConfigError: the run makes pictures or clips, or a benchmark applies to no prompt.
    """
    if not benchmarks:
        return {}
    pictures = is_seen(items)
    own = [] if pictures else list(zip(rows.prompt_N.tolist(), rows.sample_N.tolist(), items, strict=True))
    ranks = processes.gather((pictures, own))
    if any(made_pictures for made_pictures, _ in ranks):
        raise ConfigError("evaluation.benchmarks read texts, but this run makes pictures or clips: leave them out.")
    answers = sorted((answer for _, part in ranks for answer in part), key=lambda answer: answer[:2])
    found: dict[str, float] = {}
    for name, benchmark in benchmarks.items():
        asked = [(rows.prompts[p], text) for p, _, text in answers if _applies(benchmark, rows.prompts[p])]
        if not asked:
            raise ConfigError(
                f"evaluation.benchmarks.{name} applies to none of {len(rows.prompts)} held-out prompts: look at its "
                "sources, and at whether the annotations hold what it compares with."
            )
        scores = benchmark([text for _, text in asked], [prompt for prompt, _ in asked])
        found |= {f"eval/{name}/{metric}": float(value) for metric, value in scores.items()}
    return found


def _applies(benchmark: Any, prompt: Prompt) -> bool:
    sources, ruled = getattr(benchmark, "sources", None), getattr(benchmark, "applies_to", None)
    return (sources is None or prompt.source in sources) and (ruled is None or bool(ruled(prompt)))
