"""A reward as JSON that another Python can make again: class names and settings, nothing that is loaded."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.registry import load

COMPONENT, FUNCTION, TUPLE, DICT, PATH = "$component", "$function", "$tuple", "$dict", "$path"


def as_json(name: str, value: Any) -> Any:
    """A component, with those that it holds, as plain JSON.

    Raises:
        ConfigError: it holds something that only this process has.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [as_json(name, part) for part in value]
    if type(value) is tuple:
        return {TUPLE: [as_json(name, part) for part in value]}
    if type(value) is dict:
        return {DICT: [[as_json(name, key), as_json(name, part)] for key, part in value.items()]}
    if isinstance(value, Path):
        return {PATH: str(value)}
    if is_dataclass(value) and not isinstance(value, type):
        settings = {f.name: as_json(name, getattr(value, f.name)) for f in fields(value) if f.init}
        return {COMPONENT: _place(name, type(value)), "settings": settings}
    if inspect.isroutine(value):
        return {FUNCTION: _place(name, value)}
    raise ConfigError(
        f"reward {name!r}: an environment of its own cannot make {shown(value, 80)} again. Use a function, or a dataclass whose fields are "
        "its settings, package.module:Name."
    )


def _place(name: str, value: Any) -> str:
    module, qualified = getattr(value, "__module__", None), value.__qualname__
    if module in (None, "__main__") or "<" in qualified:
        raise ConfigError(
            f"reward {name!r}: {qualified} is defined in the script that was started or inside a function, where an environment of its own "
            "does not find it. Put it into a module: package.module:Name."
        )
    return f"{module}:{qualified}"


def from_json(value: Any) -> Any:
    """The inverse of `as_json`; raises ConfigError for a module that cannot be imported here."""
    if isinstance(value, list):
        return [from_json(part) for part in value]
    if not isinstance(value, dict):
        return value
    if TUPLE in value:
        return tuple(from_json(part) for part in value[TUPLE])
    if DICT in value:
        return {from_json(key): from_json(part) for key, part in value[DICT]}
    if PATH in value:
        return Path(value[PATH])
    if FUNCTION in value:
        return load(value[FUNCTION])
    return load(value[COMPONENT])(**{name: from_json(part) for name, part in value["settings"].items()})
