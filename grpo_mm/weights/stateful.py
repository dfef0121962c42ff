"""Parts of a run that learn beside the weights: multipliers, difficulty, calibration, value trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

from grpo_mm.errors import CheckpointError
from grpo_mm.rollout.table import Table


@runtime_checkable
class Stateful(Protocol):
    """A component whose state is saved with the run, the same on every rank."""

    def update(self, table: Table) -> None:
        """Called with the step's table (rewards and columns of all ranks) after its updates were applied."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def stateful_parts(config: Any, path: str = "") -> Iterator[tuple[str, Stateful]]:
    """Every stateful component of a config, with its dotted key."""
    if isinstance(config, Stateful):
        yield path, config
    if is_dataclass(config) and not isinstance(config, type):
        children = [(f.name, getattr(config, f.name)) for f in fields(config)]
    elif isinstance(config, Mapping):
        children = list(config.items())
    elif isinstance(config, (list, tuple)):
        children = list(enumerate(config))
    else:
        return
    for name, child in children:
        yield from stateful_parts(child, f"{path}.{name}" if path else str(name))


def part_metrics(config: Any) -> dict[str, float]:
    """What stateful components that have `metrics()` report of themselves, for the log of a step."""
    parts = [part for _, part in stateful_parts(config) if hasattr(part, "metrics")]
    return {name: value for part in parts for name, value in part.metrics().items()}


def load_parts(config: Any, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts saved states back; a part without a state, or a state without a part, is an error."""
    parts = dict(stateful_parts(config))
    if set(parts) != set(states):
        raise CheckpointError(
            f"the checkpoint keeps the state of {sorted(states) or 'no component'}, the config has {sorted(parts) or 'none'}."
        )
    for path, part in parts.items():
        part.load_state_dict(states[path])
