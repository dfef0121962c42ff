"""From (role, kind) to code, with the paper it comes from and a config that uses it: what the rooms list of themselves.

A `kind` that no room lists may be `package.module:Name`. A component is imported when it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from grpo_mm.errors import ConfigError
from grpo_mm.moved import present_target, tell


@dataclass(frozen=True)
class Role:
    """Marks a field whose value is a component of the table, e.g. Annotated[Any, Role("reward")]."""

    name: str


def role_of(annotation: Any) -> Role | None:
    """The role that a field's annotation carries."""
    if typing.get_origin(annotation) is Annotated:
        return next((m for m in annotation.__metadata__ if isinstance(m, Role)), None)
    return None


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    role: str
    kind: str
    target: str
    """package.module:Name; for a preset, the path of its config."""
    paper: str = ""
    config: str = ""


ROOMS = (
    "grpo_mm.pipelines.flow",
    "grpo_mm.pipelines.video_grounding",
    "grpo_mm.pipelines.spatial",
    "grpo_mm.pipelines.flow.models",
    "grpo_mm.pipelines.flow.engines",
    "grpo_mm.pipelines.vlm",
    "grpo_mm.pipelines.vlm.sampling",
    "grpo_mm.pipelines.flow.trees",
    "grpo_mm.rollout.collectors",
    "grpo_mm.rollout",
    "grpo_mm.advantages.baselines",
    "grpo_mm.advantages.combination",
    "grpo_mm.advantages.masks",
    "grpo_mm.advantages.actions",
    "grpo_mm.advantages.scales",
    "grpo_mm.advantages.bonuses",
    "grpo_mm.advantages.state",
    "grpo_mm.objectives",
    "grpo_mm.datasets.shared",
    "grpo_mm.datasets.images",
    "grpo_mm.datasets.worlds",
    "grpo_mm.datasets.spatial",
    "grpo_mm.datasets.video",
    "grpo_mm.datasets.chat",
    "grpo_mm.datasets.media",
    "grpo_mm.rewards.images",
    "grpo_mm.rewards.text",
    "grpo_mm.rewards.judges",
    "grpo_mm.rewards.video",
    "grpo_mm.rewards.spatial",
    "grpo_mm.rewards.faithfulness",
    "grpo_mm.rewards.benchmarks",
)
"""Packages whose `KINDS` list what a config can name, in the order of `grpo-mm methods`."""


@cache
def table() -> tuple[Entry, ...]:
    """The kinds of all rooms."""
    return tuple(entry for room in ROOMS for entry in importlib.import_module(room).KINDS)


def __getattr__(name: str) -> Any:
    if name == "TABLE":
        return table()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def entries(role: str | None = None) -> list[Entry]:
    """The table, or the lines of one role."""
    return [entry for entry in table() if role is None or entry.role == role]


def lookup(role: str, kind: str) -> Any:
    """The class or function behind a kind; raises ConfigError with the nearest name."""
    for entry in table():
        if entry.role == role and entry.kind == kind:
            return load(entry.target)
    if ":" in kind:
        return load(kind)
    kinds = [entry.kind for entry in entries(role)]
    near = difflib.get_close_matches(kind, kinds, n=1)
    raise ConfigError(
        f"unknown {role} kind {kind!r}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" There are: {', '.join(kinds)}; or package.module:Name for your own."
    )


def load(target: str) -> Any:
    """Imports `package.module:Name`."""
    module_name, _, name = present_target(target).partition(":")
    tell(target.partition(":")[0])
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(
            f"{target!r}: no module named {error.name!r}. Is it installed, or in the folder you start from?"
        ) from error
    if not hasattr(module, name):
        public = [n for n in dir(module) if inspect.isclass(v := getattr(module, n, None)) or inspect.isfunction(v)]
        near = difflib.get_close_matches(name, public, n=1)
        raise ConfigError(
            f"{target!r}: {module_name} has no {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")
        )
    return getattr(module, name)


def kind_of(role: str, thing: Any) -> str:
    """The inverse of `lookup`: the kind of an object's class, or of a function."""
    cls = thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing)
    for entry in entries(role):
        module_name, _, name = entry.target.partition(":")
        if (cls.__module__, cls.__name__) == (module_name, name):
            return entry.kind
    return f"{cls.__module__}:{cls.__qualname__}"
