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
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from grpo_mm import registry
from grpo_mm.config.methods import preset
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain mapping of a config file: its one `inherit`ed parent below it, `key.sub=value` overrides on top."""
    path = Path(path)
    mapping = _load(path)
    parent_name = mapping.pop("inherit", None)
    if parent_name is not None:
        if not isinstance(parent_name, str):
            raise ConfigError(f"{path}: inherit is {parent_name!r}, wanted the name of one file.")
        parent = _load(path.parent / parent_name)
        if "inherit" in parent:
            raise ConfigError(
                f"{path}: inherits {parent_name}, which itself inherits {parent['inherit']!r}. One level is allowed, "
                "so that a config can be read back: copy what you need into one of them."
            )
        mapping = merge(parent, mapping)
    for text in overrides:
        if text.startswith("method="):
            mapping = override(mapping, text)
    if isinstance(mapping.get("method"), str):
        filled = preset(mapping["method"])
        emptied = [key for key in filled if f"{key}=null" in overrides]
        mapping = {key: value for key, value in mapping.items() if key not in emptied}
        overrides = [text for text in overrides if text.partition("=")[0] not in emptied]
        mapping = merge(
            _named_rewards(filled, mapping), mapping
        )  # what the file says stands above what its method says
    for text in overrides:
        mapping = override(mapping, text)
    return _filled(mapping, mapping.get("data") or {}, where=str(path))


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
            raise ConfigError(f"{where}: {value!r} asks for data.{name}; set data.{name}=… (there are: {there}).")
    whole = PLACE.fullmatch(value)
    return data[whole.group(1)] if whole else PLACE.sub(lambda found: str(data[found.group(1)]), value)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"no config file {path}." + (f" In that folder: {', '.join(sorted(near))}." if near else ""))
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoRepeats)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or no date or number after all
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} holds {type(mapping).__name__}, wanted a mapping of settings.")
    return mapping


class _NoRepeats(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error; otherwise the first one would be ignored silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; lists and scalars replace; a mapping of another `kind` replaces the whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def override(mapping: dict[str, Any], text: str) -> dict[str, Any]:
    """Sets one `key.sub=value` in a plain mapping, which is changed and returned; list entries go by index.

    A mapping is merged into the one that is there; `key={}` empties it.
    """
    key, sign, value_text = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"override {text!r} is not of the form key.sub=value, e.g. optim.lr=1e-5.")
    try:
        value = yaml.safe_load(value_text) if value_text else ""
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {' '.join(str(error).split())}") from error
    node: Any = mapping
    steps = key.split(".")
    for step in steps[:-1]:
        node = node[_list_index(node, step, text)] if isinstance(node, list) else node.setdefault(step, {})
        if isinstance(node, str):
            raise ConfigError(f"override {text!r}: {step} is {node!r}, a plain value; set {step} itself.")
        if node is None or not isinstance(node, (dict, list)):
            raise ConfigError(
                f"override {text!r}: {step} is {node!r} and has no keys; set {step} itself, {step}={{…}}."
            )
    if isinstance(node, list):
        node[_list_index(node, steps[-1], text)] = value
    elif value:
        node.update(merge(node, {steps[-1]: value}))  # of another kind it replaces what is there
    else:
        node[steps[-1]] = value
    return mapping


def _list_index(node: list[Any], step: str, override: str) -> int:
    if not step.isdigit() or int(step) >= len(node):
        raise ConfigError(f"override {override!r}: {step!r} is no index of a list with {len(node)} entries.")
    return int(step)


def build(cls: type, mapping: Any, *, path: str = "") -> Any:
    """An instance of dataclass `cls` from a plain mapping; errors name the key by its path."""
    where = path or "the config"
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: found {mapping!r}, wanted a mapping with the keys {', '.join(_names(cls))}.")
    for key in mapping:
        if key not in _names(cls):
            near = difflib.get_close_matches(str(key), _names(cls), n=1)
            raise ConfigError(
                f"{where}: unknown key {key!r}."
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
    role = _role(annotation)
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
            raise ConfigError(f"{path}: found {value!r}, wanted a mapping of names.")
        return {str(k): convert(args[1], item, path=f"{path}.{k}") for k, item in value.items()}
    if dataclasses.is_dataclass(annotation):
        return value if isinstance(value, annotation) else build(annotation, value, path=path)
    if isinstance(value, bool) and annotation in (int, float):
        raise ConfigError(f"{path}: found {value!r}; input should be a number.")
    try:
        found = TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"{path}: found {value!r}; {problem['msg'].lower()}.") from error
    if not _finite(found):
        raise ConfigError(f"{path}: found {value!r}; input should be a finite number.")
    return found


def _finite(value: Any) -> bool:
    """No NaN and no infinity anywhere in a plain value."""
    if isinstance(value, Mapping):
        return all(_finite(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


def _role(annotation: Any) -> Role | None:
    if typing.get_origin(annotation) is Annotated:
        return next((m for m in annotation.__metadata__ if isinstance(m, Role)), None)
    return None


def _is_ours(annotation: Any) -> bool:
    return _role(annotation) is not None or dataclasses.is_dataclass(annotation)


def component(role: Role, value: Any, *, path: str) -> Any:
    """The component that `value` names: a kind, or a mapping with `kind` and settings. Objects pass through."""
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        if isinstance(value, (int, float, list)) or value is None:
            raise ConfigError(f"{path}: found {value!r}, wanted a mapping with `kind` ({role.name}).")
        return value
    if "kind" not in value:
        kinds = ", ".join(entry.kind for entry in registry.entries(role.name))
        raise ConfigError(f"{path}: the key 'kind' is missing; there are: {kinds}.")
    settings = {k: v for k, v in value.items() if k != "kind"}
    if not isinstance(value["kind"], str):
        raise ConfigError(f"{path}: kind is {value['kind']!r}, wanted a name ({role.name}).")
    try:
        target = registry.lookup(role.name, value["kind"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if inspect.isclass(target) and dataclasses.is_dataclass(target):
        return build(target, settings, path=path)
    if settings:
        raise ConfigError(f"{path}: {value['kind']} takes no settings, found {', '.join(settings)}.")
    return target() if inspect.isclass(target) else target


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
    role = _role(annotation)
    for inner in typing.get_args(annotation) if role is None else ():
        role = role or _role(inner)
    return dump(value, role=role.name if role else None)
