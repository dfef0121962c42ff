"""YAML to typed objects, strictly: unknown keys stop the run and suggest the nearest name.

A component is a plain dataclass whose fields are its settings. A field annotated with `Role(...)` holds a component that
the config names by `kind`.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from grpo_mm import registry
from grpo_mm.config.methods import preset
from grpo_mm.config.overrides import merge, override
from grpo_mm.config.yaml_text import read_yaml_file
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import expanded, place, plain, reason, shown
from grpo_mm.registry import Role, role_of


def read_yaml(
    path: str | Path, overrides: Sequence[str] = (), of: type | None = None, *, unset: list[str] | None = None
) -> dict[str, Any]:
    """The plain mapping of a config file: its one `inherit`ed parent below it, `key.sub=value` overrides on top.

    `of`: the dataclass that the file describes; its fields say what the text of an override means.
    `unset`: takes down which ${data.NAME} have no value, in whose place their names then stand; None: that is refused.
    """
    path = place(path, what="the config")
    mapping = _load(path)
    parent_name = mapping.pop("inherit", None)
    if parent_name is not None:
        if not isinstance(parent_name, str):
            raise ConfigError(f"{path}: inherit is {shown(parent_name)}, wanted the name of one file.")
        parent = _load(path.parent / place(parent_name, what=f"{path}: inherit"))
        if "inherit" in parent:
            raise ConfigError(
                f"{path}: inherits {plain(parent_name)}, which itself inherits {shown(parent['inherit'])}. One level is allowed, "
                "so that a config can be read back: copy what you need into one of them."
            )
        mapping = merge(parent, mapping)
    for text in overrides:
        if text.startswith("method="):
            mapping = override(mapping, text, of)
    if isinstance(mapping.get("method"), str):
        filled = preset(mapping["method"])
        emptied = [key for key in filled if f"{key}=null" in overrides]
        mapping = {key: value for key, value in mapping.items() if key not in emptied}
        overrides = [text for text in overrides if text.partition("=")[0] not in emptied]
        mapping = merge(
            _named_rewards(filled, mapping), mapping
        )  # what the file says stands above what its method says
    for text in overrides:
        mapping = override(mapping, text, of)
    data = _data_of(mapping, path)
    if unset is not None:
        unset += [name for name in dict.fromkeys(PLACE.findall(str(mapping))) if data.get(name) is None]
        data = dict(data) | {name: f"data.{name}" for name in unset}
    return _filled(mapping, data, where=str(path))


def _data_of(mapping: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    data = mapping.get("data") or {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: data is {shown(data)}, wanted a mapping of names.")
    return data


def _named_rewards(filled: dict[str, Any], mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The preset without its settings for rewards that the file does not name, if it names any."""
    named = mapping.get("rewards")
    if not isinstance(named, Mapping) or not named or "rewards" not in filled:
        return filled
    return filled | {"rewards": {name: scorer for name, scorer in filled["rewards"].items() if name in named}}


PLACE = re.compile(r"\$\{data\.(\w+)\}")


def _filled(value: Any, data: Mapping[str, Any], *, where: str) -> Any:
    """With ${data.NAME} replaced by what the mapping `data` says, wherever it stands: one place for a user's own paths."""
    if isinstance(value, Mapping):
        return {key: _filled(v, data, where=where) for key, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, data, where=where) for v in value]
    if not isinstance(value, str):
        return value
    for name in PLACE.findall(value):
        if data.get(name) is None:
            there = ", ".join(sorted(data)) or "no `data` at all"
            raise ConfigError(f"{where}: {shown(value)} asks for data.{name}; set data.{name}=… (there are: {there}).")
    whole = PLACE.fullmatch(value)
    return deepcopy(data[whole.group(1)]) if whole else PLACE.sub(lambda found: str(data[found.group(1)]), value)


def _load(path: Path) -> dict[str, Any]:
    if not _is_file(path):
        near = [str(p) for p in path.parent.glob("*.yaml")] if _is_folder(path.parent) else []
        raise ConfigError(
            f"no config file {plain(str(path))}."
            + (f" In that folder: {', '.join(sorted(near)[:20])}." if near else "")
        )
    mapping = read_yaml_file(path)
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} holds {type(mapping).__name__}, wanted a mapping of settings.")
    return mapping


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or none
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def build(cls: type, mapping: Any, *, path: str = "") -> Any:
    """An instance of dataclass `cls` from a plain mapping; errors name the key by its path."""
    where = path or "the config"
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: found {mapping!r}, wanted a mapping with the keys {', '.join(_names(cls))}.")
    for key in mapping:
        if key not in _names(cls):
            near = difflib.get_close_matches(str(key), _names(cls), n=1)
            raise ConfigError(
                f"{where}: unknown key {shown(key)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" Known keys: {', '.join(_names(cls))}."
            )
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {}
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        here = f"{path}.{f.name}" if path else f.name
        if f.name in mapping:
            values[f.name] = convert(hints[f.name], mapping[f.name], path=here)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: the key {f.name!r} is missing.")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init]


def convert(annotation: Any, value: Any, *, path: str) -> Any:
    """A plain value to what a field's annotation asks for."""
    role = role_of(annotation)
    if role is not None:
        return component(role, value, path=path)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        if len(options) == 1:
            return convert(options[0], value, path=path)
    if origin in (list, tuple) and args and _is_ours(args[0]):
        if not isinstance(value, (list, tuple)):
            value = [value]
        items = [convert(args[0], item, path=f"{path}.{i}") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict and _is_ours(args[1]):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: found {shown(value)}, wanted a mapping of names.")
        return {str(k): convert(args[1], item, path=f"{path}.{k}") for k, item in value.items()}
    if dataclasses.is_dataclass(annotation):
        return value if isinstance(value, annotation) else build(annotation, value, path=path)
    if isinstance(value, bool) and annotation in (int, float):
        raise ConfigError(f"{path}: found {shown(value)}; input should be a number.")
    if isinstance(value, str) and (annotation is bool or bool in args):
        value = SWITCHES.get(value.lower(), value)
    try:
        found = TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"{path}: found {shown(value)}; {problem['msg'].lower()}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: found a value that is nested too deeply.") from error
    _check_numbers(found, value, path=path)
    return _with_homes(found)


SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
"""Words that YAML 1.1 takes for true and false; here a field of that type does."""
LARGEST_INT = 2**63 - 1


def _check_numbers(found: Any, value: Any, *, path: str) -> None:
    """No NaN, no infinity and no whole number that int64 does not hold, anywhere in a plain value; no number of a
    text that different readers take for different numbers."""
    if isinstance(found, Mapping):
        for key, part in found.items():
            _check_numbers(part, value.get(key) if isinstance(value, Mapping) else None, path=path)
    elif isinstance(found, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(found)
        for part, was in zip(found, value if same else [None] * len(found), strict=True):
            _check_numbers(part, was, path=path)
    elif isinstance(found, float) and not math.isfinite(found):
        raise ConfigError(f"{path}: found {shown(value)}; input should be a finite number.")
    elif isinstance(found, (int, float)) and not isinstance(found, bool):
        if isinstance(found, int) and abs(found) > LARGEST_INT:
            raise ConfigError(f"{path}: found {shown(value)}; no number of the run may be as large.")
        if isinstance(value, str) and AMBIGUOUS.match(value.strip()):
            raise ConfigError(
                f"{path}: found {shown(value)}; with a 0 before it a number is octal to some. Leave it out."
            )


AMBIGUOUS = re.compile(r"[-+]?0[0-9_]")


def _with_homes(value: Any) -> Any:
    """Texts of a field, and of a list of texts, with `~` expanded: the one place where a config's paths get their home."""
    if isinstance(value, str):
        return expanded(value)
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return type(value)(expanded(part) for part in value)
    return value


def _is_ours(annotation: Any) -> bool:
    return role_of(annotation) is not None or dataclasses.is_dataclass(annotation)


def component(role: Role, value: Any, *, path: str) -> Any:
    """The component that `value` names: a kind, or a mapping with `kind` and settings. Objects pass through."""
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        if isinstance(value, (int, float, list)) or value is None:
            raise ConfigError(f"{path}: found {shown(value)}, wanted a mapping with `kind` ({role.name}).")
        return value
    if "kind" not in value:
        kinds = ", ".join(entry.kind for entry in registry.entries(role.name))
        raise ConfigError(f"{path}: the key 'kind' is missing; there are: {kinds}.")
    settings = {k: v for k, v in value.items() if k != "kind"}
    if not isinstance(value["kind"], str):
        raise ConfigError(f"{path}: kind is {shown(value['kind'])}, wanted a name ({role.name}).")
    try:
        target = registry.lookup(role.name, value["kind"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    made = _made(target, value["kind"], settings, path=path)
    try:
        registry.check_role(role.name, value["kind"], made)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return made


def _made(target: Any, kind: str, settings: Mapping[str, Any], *, path: str) -> Any:
    """The component; whatever code that is not ours does while it is made is a ConfigError."""
    try:
        if inspect.isclass(target) and dataclasses.is_dataclass(target):
            return build(target, settings, path=path)
        if settings:
            raise ConfigError(f"{path}: {kind} takes no settings, found {plain(', '.join(settings), 200)}.")
        return target() if inspect.isclass(target) else target
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if str(getattr(target, "__module__", "")).partition(".")[0] == "grpo_mm":
            raise
        raise ConfigError(f"{path}: {shown(kind)} cannot be made from these settings: {reason(error)}.") from error


def dump(value: Any, *, role: str | None = None) -> Any:
    """The inverse of `build`: plain values that can be written as YAML, defaults included."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value), include_extras=True)
        plain = {
            f.name: _dump_field(hints[f.name], getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
        return ({"kind": registry.kind_of(role, value)} if role else {}) | plain
    if inspect.isfunction(value) or isinstance(value, type):
        return registry.kind_of(role or "", value)
    if isinstance(value, Mapping):
        return {str(k): dump(v, role=role) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(v, role=role) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _dump_field(annotation: Any, value: Any) -> Any:
    role = role_of(annotation)
    for inner in typing.get_args(annotation) if role is None else ():
        role = role or role_of(inner)
    return dump(value, role=role.name if role else None)
