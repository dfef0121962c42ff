"""Environments in words, for `grpo-mm show` and `grpo-mm environment`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_mm.environments.building import folder, is_ready, place_of
from grpo_mm.environments.requirements import Requirements, requirements, shipped


def line(wanted: Requirements) -> str:
    """Which packages, where, and whether it is there."""
    pins = ", ".join(f"{name} {version}" for name, version in wanted.pins[:8])
    more = f" and {len(wanted.pins) - 8} more" if len(wanted.pins) > 8 else ""
    behind = "alone" if wanted.stands_alone else "before the run's own packages"
    state = (
        "is there"
        if is_ready(wanted)
        else f"is not there yet: `grpo-mm environment {wanted.asked}`, or the run's start, makes it"
    )
    return f"environment {wanted.name}: {pins}{more}; {behind}; {place_of(wanted)} {state}"


def of_scorers(scorers: Mapping[str, Any]) -> Iterator[str]:
    """A line for each entry of `rewards` or `watch` that has an environment."""
    for name, scorer in scorers.items():
        if scorer.environment is not None:
            yield f"{name} runs in the {line(requirements(scorer.environment))}"


def all_shipped() -> Iterator[str]:
    """The environments that come with the package."""
    yield f"environments lie in {folder()}"
    yield from (line(requirements(name)) for name in shipped())
