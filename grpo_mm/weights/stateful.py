"""Parts of a run that learn beside the weights: multipliers, difficulty, calibration, value trackers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

from grpo_mm.errors import CheckpointError
from grpo_mm.rollout.table import Table

log = logging.getLogger(__name__)


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


def load_parts(config: Any, states: Mapping[str, Mapping[str, Any]], *, changed: Iterable[str] = ()) -> None:
    """Puts saved states back. What was put in, taken out or exchanged since begins anew, which the log says.

    Args:
        changed: dotted keys of settings that are others than those of the checkpoint; what is watched may always be another.

    Raises:
        CheckpointError: a part without a state, or a state without a part, where nothing was changed.
    """
    parts, changed = dict(stateful_parts(config)), tuple(changed)
    stay = [path for path in sorted({*parts, *states}) if not _lies_in(path, (*changed, *COME_AND_GO))]
    if any((path in parts) != (path in states) for path in stay):
        raise CheckpointError(
            f"the checkpoint keeps the state of {sorted(states) or 'no component'}, the config has {sorted(parts) or 'none'}."
        )
    for path, part in parts.items():
        if path in states and not _lies_in(path, changed) and _is_of_its_kind(path, part, states[path]):
            part.load_state_dict(states[path])
        else:
            log.info("%s begins anew: the checkpoint has no state of it", path)
    for path in sorted(set(states) - set(parts)):
        log.info("%s is gone, and what it had learnt with it", path)


COME_AND_GO = ("watch",)
"""Settings that are free, and may hold parts."""


def _is_of_its_kind(path: str, part: Stateful, state: Mapping[str, Any]) -> bool:
    """Of what comes and goes the kind is not recorded."""
    return not _lies_in(path, COME_AND_GO) or set(state) == set(part.state_dict())


def _lies_in(path: str, keys: Iterable[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)
