"""The prompts of a run, read and checked before a model is loaded, and what there is to be said of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.sources import Digests
from grpo_mm.outside import shown
from grpo_mm.registry import kind_of
from grpo_mm.rollout.overlap import trained_on
from grpo_mm.rollout.prompt_check import check_first_files, check_prompts
from grpo_mm.rollout.scoring import Scorer
from grpo_mm.run.data_digests import with_rows
from grpo_mm.types import Prompt

NAMED = 5
log = logging.getLogger(__name__)


@dataclass
class RunData:
    """The prompts of a run, read once, when they are first asked for."""

    config: RunConfig

    @cached_property
    def training(self) -> dict[str, list[Prompt]]:
        """As `training_prompts`."""
        return training_prompts(self.config)

    @cached_property
    def held_out(self) -> tuple[Prompt, ...]:
        """As `held_out_prompts`."""
        return held_out_prompts(self.config)

    def digests(self, sources: Mapping[str, Digests]) -> dict[str, Digests]:
        """The digests of `sources_of` with those of the rows (`with_rows`); what a world draws is told by its settings."""
        rows: dict[str, list[Prompt]] = {}
        for name, source in self.config.prompts.items():
            rows |= {} if _is_drawn(source.use) else {f"prompts.{name}.use": self.training[name]}
        for name, source in self.config.eval_prompts.items():
            own = [prompt for prompt in self.held_out if prompt.source == name]
            rows |= {} if _is_drawn(source.use) else {f"eval_prompts.{name}.use": own}
        return with_rows(sources, rows)


def training_prompts(config: RunConfig) -> dict[str, list[Prompt]]:
    """Source → its prompts. Raises ConfigError for data that cannot be read, or that the run would not use as they are."""
    sources = {name: source.use.load() for name, source in config.prompts.items()}
    check_sources(config, sources, config.rewards | config.watched_rewards)
    return sources


def held_out_prompts(config: RunConfig) -> tuple[Prompt, ...]:
    """The evaluation prompts of all sources, each carrying its source's name; raises ConfigError as `training_prompts`."""
    limit = config.evaluation.limit
    sources = {
        name: [replace(prompt, source=name) for prompt in source.use.load()[:limit]]
        for name, source in config.eval_prompts.items()
    }
    benchmarks = {
        f"evaluation.benchmarks.{name}": Scorer(use, sources=getattr(use, "sources", None))
        for name, use in config.evaluation.benchmarks.items()
    }
    check_sources(config, sources, config.rewards | config.watched_rewards | benchmarks)
    return tuple(prompt for prompts in sources.values() for prompt in prompts)


def overlap(trained: Mapping[str, Sequence[Prompt]], held_out: Sequence[Prompt]) -> dict[str, int]:
    """For the record: how many prompts are held out, and how many of them are trained on as well, which is warned of."""
    if not held_out:
        return {}
    found = trained_on((prompt for prompts in trained.values() for prompt in prompts), held_out)
    if found:
        log.warning("%s", overlap_line(found, len(held_out)))
    return {"data/held_out": len(held_out), "data/held_out_in_training": len(found)}


def overlap_line(found: Sequence[Prompt], count: int) -> str:
    """For people. Example: "3 of 64 held-out prompts are trained on as well (same text, same media): …"."""
    names = ", ".join(shown(prompt.id, 60) for prompt in found[:NAMED]) + (", …" if len(found) > NAMED else "")
    return (
        f"{len(found)} of {count} held-out prompts are trained on as well (same text, same media): {names}. Their scores tell what was "
        "learnt by heart too."
    )


def data_lines(config: RunConfig) -> list[str]:
    """What `show` says of the data: prompts by source, and those that stand on both sides.

    Sources that draw their media when a run starts are not asked to. Raises ConfigError as `training_prompts`.
    """
    drawn = [name for name, source in {**config.prompts, **config.eval_prompts}.items() if _is_drawn(source.use)]
    if drawn:
        return [f"data: {', '.join(dict.fromkeys(drawn))} drawn when the run starts, not looked at here"]
    trained, held_out = training_prompts(config), held_out_prompts(config)
    sources = ", ".join(f"{name} {len(prompts)}" for name, prompts in trained.items())
    lines = [f"data: {sources} prompts to train on; {len(held_out)} held out"]
    found = trained_on((prompt for prompts in trained.values() for prompt in prompts), held_out)
    if held_out:
        lines.append(overlap_line(found, len(held_out)) if found else "no held-out prompt is trained on as well")
    return lines


def check_sources(config: RunConfig, sources: Mapping[str, Sequence[Prompt]], scorers: Mapping[str, Any]) -> None:
    """Raises ConfigError for media that are not there, prompts that the run's engine would not show as they are, or that a scorer
    cannot take."""
    check_first_files(sources)
    check_prompts(
        sources,
        scorers,
        shows_media=hasattr(config.engine, "illustrate"),
        pictures=getattr(config.policy, "pictures", (0, 0)),
        engine=str(kind_of("engine", type(config.engine))),
    )


def _is_drawn(source: Any) -> bool:
    return getattr(source, "is_drawn", False) or (hasattr(source, "of") and _is_drawn(source.of))
