"""From (role, kind) to code, with the paper it comes from and a config that uses it: what the rooms list of themselves.

A `kind` that no room lists may be `package.module:Name`. A component is imported when it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.moved import present_target, tell
from grpo_mm.outside import plain, reason, shown


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
    "grpo_mm.pipelines.flow.editing",
    "grpo_mm.pipelines.flow.engines",
    "grpo_mm.pipelines.vlm",
    "grpo_mm.pipelines.vlm.sampling",
    "grpo_mm.pipelines.vlm.engine_server",
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
    "grpo_mm.datasets.table",
    "grpo_mm.datasets.media",
    "grpo_mm.rewards.images",
    "grpo_mm.rewards.edits",
    "grpo_mm.rewards.clips",
    "grpo_mm.rewards.text",
    "grpo_mm.rewards.judges",
    "grpo_mm.rewards.reward_models",
    "grpo_mm.rewards.video",
    "grpo_mm.rewards.spatial",
    "grpo_mm.rewards.faithfulness",
    "grpo_mm.rewards.benchmarks",
    "grpo_mm.rewards.service",
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
        f"unknown {role} kind {shown(kind)}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" There are: {', '.join(kinds)}; or package.module:Name for your own."
    )


TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d][\w.]*")


def load(target: str) -> Any:
    """Imports `package.module:Name`.

    Raises:
        ConfigError: no such form, no such module or name, a module that fails while it is imported, or one that only a run
            folder names (`only_known`).
    """
    check_trusted(target)
    module_name, _, name = present_target(target).partition(":")
    if "<" in name or module_name == "__main__" and not hasattr(sys.modules["__main__"], name):
        raise ConfigError(
            f"{shown(target)} was handed over in Python, by a script or a notebook, and cannot be found again from here. Put it into a "
            f"file and name it anew, such as my_rewards:{name if name.isidentifier() else 'my_reward'}."
        )
    if not TARGET.fullmatch(f"{module_name}:{name}"):
        raise ConfigError(f"{shown(target)} is not of the form package.module:Name.")
    tell(target.partition(":")[0])
    try:
        module = importlib.import_module(module_name)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a module may end in anything, `sys.exit` included
        if isinstance(error, ModuleNotFoundError) and error.name and module_name.startswith(error.name):
            raise ConfigError(
                f"{shown(target)}: no module named {shown(error.name)}. Is it installed, or in the folder you start from?"
            ) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{shown(target)}: {shown(module_name)} cannot be imported: {reason(error)} ({last.filename}, line {last.lineno})."
        ) from error
    if not hasattr(module, name):
        public = [n for n in dir(module) if inspect.isclass(v := getattr(module, n, None)) or inspect.isfunction(v)]
        near = difflib.get_close_matches(name, public, n=1)
        raise ConfigError(
            f"{shown(target)}: {module_name} has no {shown(name)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + (f" It is {plain(module.__file__)}." if getattr(module, "__file__", None) else "")
        )
    return getattr(module, name)


_distrusted: list[tuple[str, tuple[str, ...]]] = []


@contextmanager
def only_known(source: str, *, named: Sequence[str] = ()) -> Iterator[None]:
    """Within it code is imported only if a room lists it, or if it stands in one of the `named` texts (overrides)."""
    _distrusted.append((source, tuple(named)))
    try:
        yield
    finally:
        _distrusted.pop()


def check_trusted(target: str) -> None:
    """Raises ConfigError for code that only a run folder names, see `only_known`."""
    if not _distrusted or present_target(target) in {entry.target for entry in table()}:
        return
    source, named = _distrusted[-1]
    if not any(target in text for text in named):
        raise ConfigError(
            f"{source} names code that does not come with this package, {shown(target)}. A run folder is data, and nothing "
            "that it names is imported. Look at that code, and if you trust it and the folder, add --trust."
        )


NEEDED = {
    "policy": ("check", "load", "provides"), "engine": ("check", "sample", "actions", "pictures", "provides", "table_columns"),
    "flow_model": ("load", "encode", "decode", "velocity"), "noise": ("__call__", "trained_steps"), "solver": ("grid", "step"),
    "tree": ("__call__", "check"), "draws": ("__call__", "count"), "generator": ("generate",), "prompts": ("load",),
    "objective": ("__call__", "needs", "couples"), "media": ("load",), "detector": ("__call__", "labels"),
    "verdict": ("verdicts",), "vlm": ("ask",), "sketch": ("__call__", "truth"), "benchmark": ("__call__",),
    "demonstration": ("rows", "tokens"), "prediction_file": ("score",),
}  # fmt: skip
"""What the rest of the package asks of a component, by role; of the roles that do not stand here, a call."""
NO_FUNCTIONS = frozenset({"strategy", "benchmark", "tree"})
"""Roles whose call has settings or state beside it: a bare function there is one that was meant for something else."""


def check_role(role: str, kind: str, thing: Any) -> None:
    """Raises ConfigError if a component cannot play the role that the config gives it."""
    cls = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    own = {entry.role for entry in table() if entry.target == f"{cls.__module__}:{getattr(cls, '__name__', '')}"}
    if own and role not in own:
        raise ConfigError(
            f"{shown(kind)} is a component of the role {sorted(own)[0]!r}, wanted one of the role {role!r}."
        )
    absent = [name for name in NEEDED.get(role, ("__call__",)) if not _has(thing, name)]
    if absent:
        raise ConfigError(
            f"{shown(kind)} cannot be a component of the role {role!r}: it has no {', '.join(absent)}. For code of your own look "
            f"at one of the role: {', '.join(entry.target for entry in entries(role)[:2])}."
        )
    if inspect.isroutine(thing) and role in NO_FUNCTIONS:
        raise ConfigError(
            f"{shown(kind)} is a function; a component of the role {role!r} is an object. Wrap it in a class."
        )


def _has(thing: Any, name: str) -> bool:
    return callable(thing) if name == "__call__" else inspect.getattr_static(thing, name, None) is not None


def kind_of(role: str, thing: Any) -> str:
    """The inverse of `lookup`: the kind of an object's class, or of a function."""
    cls = thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing)
    for entry in entries(role):
        module_name, _, name = entry.target.partition(":")
        if (cls.__module__, cls.__name__) == (module_name, name):
            return entry.kind
    return f"{cls.__module__}:{cls.__qualname__}"
