"""What a stage reads beside the values it changes: a component of the table, or a declared column of the rows."""

from __future__ import annotations

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rollout.table import Table


def signal(table: Table, name: str, *, stage: str) -> Tensor:
    """The component or row column of that name, [M] float64; raises ConfigError with what there is.

    A component with no say in the sum is a reward of weight 0.
    """
    if name in table.values:
        return table.values[name].double()
    if name in table.columns and table.columns[name].ndim == 1:
        return table.columns[name].double()
    raise ConfigError(
        f"{stage}: wanted the reward or the column {name!r}; the rewards here are {', '.join(sorted(table.values))}, the "
        f"columns {', '.join(sorted(table.columns))}. Put it under `rewards` (with weight: 0 if it is not to be summed), or "
        "declare it in the rollout."
    )


def without(table: Table, name: str) -> dict[str, Tensor]:
    """The components but this one; all if there is no other."""
    rest = {key: value for key, value in table.values.items() if key != name}
    return rest or dict(table.values)


def target_of(table: Table, name: str | None, *, stage: str) -> str:
    """The component that a stage replaces, None: the only one; raises ConfigError if it is not there, or one of several."""
    if name is None and len(table.values) == 1:
        return next(iter(table.values))
    if name not in table.values:
        wanted = "the name of one reward as `target`" if name is None else f"the reward {name!r}"
        raise ConfigError(f"{stage}: wanted {wanted}; there are: {', '.join(sorted(table.values))}.")
    return name
