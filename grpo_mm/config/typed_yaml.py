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
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from grpo_mm import registry
from grpo_mm.config.methods import preset
from grpo_mm.config.overrides import annotation_at, check_overrides, merge, override
from grpo_mm.config.shipped import config_file, near_names, shipped_file
from grpo_mm.config.synonyms import here_it_is
from grpo_mm.config.yaml_text import read_yaml_file
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import expanded, place, plain, reason, shown, variable_in
from grpo_mm.registry import Role, role_of
from grpo_mm.rollout.surroundings import kept


def read_yaml(
    path: str | Path, overrides: Sequence[str] = (), of: type | None = None, *, unset: list[str] | None = None
) -> dict[str, Any]:
    """The plain mapping of a config file: its one `inherit`ed parent below it, `key.sub=value` overrides on top.

    `of`: the dataclass that the file describes; its fields say what the text of an override means.
    `unset`: takes down which ${data.NAME} have no value, in whose place their names then stand; None: that is refused.
    """
    check_overrides(overrides)
    path = config_file(place(path, what="the config"))
    return resolved(own_settings(path), overrides, of, where=str(path), unset=unset)


def resolved(
    mapping: dict[str, Any], overrides: Sequence[str], of: type | None, *, where: str, unset: list[str] | None = None
) -> dict[str, Any]:
    """The plain mapping of a config with its method below it, overrides on top, ${data.NAME} filled in.

    `where`: what messages call the config. `unset`: see `read_yaml`.
    """
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
    data = _data_of(mapping, where, unset)
    return _filled(mapping, data, where=where, unset=unset)


def own_settings(path: Path) -> dict[str, Any]:
    """What a config file says, with its parent below it: without a method and overrides."""
    return with_parent(_load(path), where=str(path), folder=path.parent)


def with_parent(mapping: dict[str, Any], *, where: str, folder: Path) -> dict[str, Any]:
    """A config on top of the one it `inherit`s, which is looked for in `folder`, then among those that ship with the package."""
    parent_name = mapping.pop("inherit", None)
    if parent_name is None:
        return mapping
    if not isinstance(parent_name, str):
        raise ConfigError(f"{where}: inherit is {shown(parent_name)}, wanted the name of one file.")
    parent = _load(_parent_file(place(parent_name, what=f"{where}: inherit"), folder))
    if "inherit" in parent:
        raise ConfigError(
            f"{where}: inherits {plain(parent_name)}, which itself inherits {shown(parent['inherit'])}. One level is allowed, "
            "so that a config can be read back: copy what you need into one of them."
        )
    return merge(parent, mapping)


def _parent_file(name: Path, folder: Path) -> Path:
    beside = folder / name
    return beside if _is_file(beside) else shipped_file(name) or beside


def _data_of(mapping: Mapping[str, Any], where: str, unset: list[str] | None) -> Mapping[str, Any]:
    """The entries of `data`, those filled in that name others."""
    data = mapping.get("data") or {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: data is {shown(data)}, wanted a mapping of names.")
    filled = _filled(data, data, where=f"{where}: data", unset=unset)
    for name, value in filled.items():
        if isinstance(value, str) and (again := PLACE.search(value)):
            raise ConfigError(
                f"{where}: data.{plain(str(name), 80)} is {shown(data[name])}, and what that names is filled in itself ({shown(again[0])}). "
                "One level is allowed: write that one out."
            )
    return filled


def _named_rewards(filled: dict[str, Any], mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The preset without its settings for rewards that the file does not name, if it names any."""
    named = mapping.get("rewards")
    if not isinstance(named, Mapping) or not named or "rewards" not in filled:
        return filled
    return filled | {"rewards": {name: scorer for name, scorer in filled["rewards"].items() if name in named}}


PLACE = re.compile(r"\$\{data\b\.?([^{}]*)\}")
LONGEST_FILLED = 1_000_000


def _filled(value: Any, data: Mapping[str, Any], *, where: str, unset: list[str] | None) -> Any:
    """With ${data.NAME} replaced by what the mapping `data` says, wherever it stands: one place for a user's own paths."""
    if isinstance(value, Mapping):
        return {key: _filled(v, data, where=where, unset=unset) for key, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, data, where=where, unset=unset) for v in value]
    if not isinstance(value, str):
        return value
    said = {"where": f"{where}: {shown(value)}", "unset": unset}
    whole = PLACE.fullmatch(value)
    if whole:
        return deepcopy(_datum(whole[1], data, **said))
    names = PLACE.findall(value)
    texts = {name: _in_text(_datum(name, data, **said), name, where=where) for name in names}
    if sum(len(texts[name]) for name in names) > LONGEST_FILLED:
        raise ConfigError(f"{where}: {shown(value)} has more than {LONGEST_FILLED:,} characters when it is filled in.")
    return PLACE.sub(lambda found: texts[found[1]], value) if names else value


def _datum(name: str, data: Mapping[str, Any], *, where: str, unset: list[str] | None) -> Any:
    """The entry of `data` that a name leads to; by dots into an entry that is a mapping."""
    found: Any = data
    for step in [name] if name in data else name.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    if found is None and name and unset is not None:
        unset += [name] * (name not in unset)
        return f"data.{name}"
    if found is None:
        there = plain(", ".join(sorted(data)), 400) or "no `data` at all"
        if not name:
            raise ConfigError(f"{where} names no entry of `data` (there are: {there}).")
        raise ConfigError(
            f"{where} asks for data.{plain(name, 80)}; set data.{plain(name, 80)}=… (there are: {there})."
        )
    return found


def _in_text(value: Any, name: str, *, where: str) -> str:
    """An entry of `data` as a part of a longer text."""
    if isinstance(value, (bool, list, Mapping)):
        raise ConfigError(
            f"{where}: data.{plain(name, 80)} is {shown(value)}, which cannot stand within a longer text. Put it in quotes."
        )
    return str(value)


def _load(path: Path) -> dict[str, Any]:
    if not _is_file(path):
        near = [str(p) for p in path.parent.glob("*.yaml")] if _is_folder(path.parent) else []
        raise ConfigError(
            f"no config file {plain(str(path))}."
            + (f" In that folder: {', '.join(sorted(near)[:20])}." if near else "")
            + _shipped_hint(path)
        )
    mapping = read_yaml_file(path)
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} holds {type(mapping).__name__}, wanted a mapping of settings.")
    return mapping


def _shipped_hint(path: Path) -> str:
    names = near_names(path)
    if names:
        return f" Configs that ship with the package: {', '.join(names)}; `grpo-mm configs` lists all."
    return " `grpo-mm configs` lists those that ship with the package."


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
            raise ConfigError(
                f"{where}: unknown key {shown(key)}{_meant(cls, mapping, str(key), path)} Known keys: {', '.join(_names(cls))}."
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


def _meant(cls: type, mapping: Mapping[str, Any], key: str, path: str) -> str:
    """How the sentence on an unknown key ends: the nearest name, where that key stands, or what another tool kit's word is here."""
    near = difflib.get_close_matches(key, [*_names(cls), *([] if path else ["inherit"])], n=1)
    if near and difflib.SequenceMatcher(None, key, near[0]).ratio() > SURELY:
        return f". Did you mean {near[0]!r}?"
    parts = [name for name in PARTS if name in _names(cls)] if not path else []
    within = [name for name in parts if annotation_at(cls, mapping, [name, key]) is not None]
    if within:
        return f": it stands under {within[0]}, as {within[0]}.{key}."
    here = here_it_is(key) if WORDS_OF_OTHERS.fullmatch(path) else None
    if here is not None:
        return f": {here}."
    return f". Did you mean {near[0]!r}?" if near else "."


PARTS = ("policy", "engine", "optim", "updates", "evaluation", "checkpoints")
"""Of a run, whose keys are looked for where one stands a level too high."""
WORDS_OF_OTHERS = re.compile(
    r"|policy(\.(lora|chat|model))?|engine|optim|updates|evaluation|checkpoints|ema|(objective|advantage)\.\d+"
)
"""Where a name of another tool kit is taken for what it is there; elsewhere names belong to components of their own."""
SURELY = 0.85
"""So alike, a name is misspelt rather than another tool kit's."""


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
        if isinstance(value, str) and value == "None" and type(None) in args:
            raise ConfigError(f"{path}: found 'None', which is Python's word; write null for none.")
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
    if _is_list_of_any_length(annotation) and isinstance(value, (str, int, float)):
        value = [value]
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
    _check_variables(found, path=path)
    return _with_homes(found)


def _check_variables(value: Any, *, path: str) -> None:
    """Nothing fills in $HOME here; a folder of that name is not what is wanted."""
    for text in [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else ():
        variable = variable_in(text) if isinstance(text, str) and "\n" not in text else None
        if variable:
            raise ConfigError(
                f"{path}: found {shown(text)}; {plain(variable, 80)} is not filled in, because a run must be readable without the "
                f"environment it was started in. Write what it stands for, name it under `data` (${{data.NAME}}), or give "
                f"{path}=… on the command line, where the shell fills it in."
            )


def _is_list_of_any_length(annotation: Any) -> bool:
    """Of plain values; what stands there alone is then a list of one."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    return origin is list or (origin is tuple and len(args) == 2 and args[1] is Ellipsis)


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
    with kept(plain(value["kind"], 200), "code of") if ":" in value["kind"] else nullcontext():
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
