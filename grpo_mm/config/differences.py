"""Where the config of a run folder and the one at hand differ, and whether the run may go on all the same."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from grpo_mm import registry
from grpo_mm.config.recorded import as_of_today
from grpo_mm.config.settings import Settings
from grpo_mm.config.typed_yaml import dump
from grpo_mm.identity import OF_A_ROLE, OF_A_USER, Identity, identity_of
from grpo_mm.outside import shown
from grpo_mm.registry import role_of

ABSENT = "(not there)"


@dataclass(frozen=True)
class Difference:
    """Example: Difference("optim.lr", 0.001, 0.5, "noted")."""

    key: str
    """Dotted."""
    there: Any
    """Plain; in the run folder."""
    here: Any
    identity: Identity
    why: str = ""
    """Why it has another class than its field says."""
    words: str = ""
    """What is said instead of both values."""

    def __str__(self) -> str:
        if self.words:
            return f"{self.key}: {self.words}"
        return f"{self.key}: {_brief(self.there)} there, {_brief(self.here)} here" + (f" ({self.why})" * bool(self.why))


def _brief(value: Any) -> str:
    return value if value == ABSENT else shown(value)


def differences_of(there: Mapping[str, Any], config: Settings) -> list[Difference]:
    """Every setting that differs, by key, with its class; `there` is what `recorded.read_recorded` gives.

    A key that an earlier version did not write counts as the default of today.
    """
    found = [_as_things_stand(each, there, config) for each in _of_fields(config, there, "", "refused")]
    return sorted(found, key=lambda each: each.key)


def components_of(config: Any, key: str = "", within: Identity = "refused") -> Iterator[tuple[str, str, Any, Identity]]:
    """(dotted key, role, component, class of the key) for every component of a config, those within others included."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        if field.init:
            here = f"{key}.{field.name}" if key else field.name
            identity = identity_of(field, within)
            yield from _components(hints[field.name], getattr(config, field.name), here, identity)


def _components(annotation: Any, value: Any, key: str, identity: Identity) -> Iterator[tuple[str, str, Any, Identity]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _components(_inner(annotation), part, f"{key}.{name}", identity)
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _components(_inner(annotation), part, f"{key}.{number}", identity)
    elif value is not None:
        role = _role(annotation)
        if role is not None:
            yield key, role, value, identity
        if is_dataclass(value) and not isinstance(value, type):
            yield from components_of(value, key, _within(role, value, identity))


def _role(annotation: Any) -> str | None:
    found = role_of(annotation) or next((role_of(part) for part in typing.get_args(annotation) if role_of(part)), None)
    return None if found is None else found.name


def _inner(annotation: Any) -> Any:
    """What a list, a tuple or a mapping holds."""
    for option in (annotation, *typing.get_args(annotation)):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin in (list, tuple) and args:
            return args[0]
        if origin is dict:
            return args[1]
    return Any


def _within(role: str | None, component: Any, identity: Identity) -> Identity:
    """The class of fields of a component, or of settings within settings, that say nothing themselves."""
    if identity == "free" or role is None:
        return identity
    listed = ":" not in registry.kind_of(role, component)
    return OF_A_ROLE.get(role, OF_A_USER) if listed else OF_A_USER


def _of_fields(thing: Any, there: Mapping[str, Any], key: str, within: Identity) -> Iterator[Difference]:
    hints, known = typing.get_type_hints(type(thing), include_extras=True), {"kind"}
    for field in fields(thing):
        if not field.init:
            continue
        known.add(field.name)
        value, identity = getattr(thing, field.name), identity_of(field, within)
        here = f"{key}.{field.name}" if key else field.name
        if field.name not in there and _is_default(field, value):
            continue
        yield from _of_value(hints[field.name], value, there.get(field.name, ABSENT), here, identity)
    for name in sorted(set(there) - known, key=str):
        yield Difference(f"{key}.{name}" if key else str(name), there[name], ABSENT, within)


def _is_default(field: Any, value: Any) -> bool:
    if field.default is not MISSING:
        return bool(field.default == value)
    return field.default_factory is not MISSING and dump(field.default_factory()) == dump(value)


def _of_value(annotation: Any, value: Any, there: Any, key: str, identity: Identity) -> Iterator[Difference]:
    role = _role(annotation)
    if isinstance(value, Mapping) and isinstance(there, Mapping):
        for name in sorted({*map(str, value), *map(str, there)}):
            if name in value and name in there:
                yield from _of_value(_inner(annotation), value[name], there[name], f"{key}.{name}", identity)
            else:
                plain = dump(value[name], role=role) if name in value else ABSENT
                yield Difference(f"{key}.{name}", _kind(there.get(name, ABSENT)), _kind(plain), identity)
        return
    here = as_of_today(dump(value, role=role))
    if here == there:
        return
    if isinstance(value, (list, tuple)) and isinstance(there, list) and _kinds(here) == _kinds(there):
        for number, (part, other) in enumerate(zip(value, there, strict=True)):
            yield from _of_value(_inner(annotation), part, other, f"{key}.{number}", identity)
    elif is_dataclass(value) and isinstance(there, Mapping) and _kind(here) == _kind(there):
        yield from _of_fields(value, there, key, _within(role, value, identity))
    else:
        yield Difference(key, _kinds(there), _kinds(here), identity)


def _kind(plain: Any) -> Any:
    """Of a component its kind; of settings within settings only that there are some."""
    if not isinstance(plain, Mapping):
        return plain
    found = plain.get("kind", plain.get("use"))
    return "given" if found is None else _kind(found)


def _kinds(plain: Any) -> Any:
    return [_kind(part) for part in plain] if isinstance(plain, list) else _kind(plain)


def _as_things_stand(found: Difference, there: Mapping[str, Any], config: Settings) -> Difference:
    """The class that a difference has beside the other settings."""
    top = found.key.partition(".")[0]
    acting = [*_acting(there.get("watch")), *_acting(dump(config.watch))]
    if found.key == "steps":
        schedules = {config.optim.schedule, (there.get("optim") or {}).get("schedule", "constant")}
        if schedules != {"constant"}:
            return replace(found, identity="noted", why="the learning rate depends on the number of steps")
    elif found.key == "evaluation.every":
        patience = (there.get("evaluation") or {}).get("patience") or config.evaluation.patience
        if patience is not None:
            return replace(found, identity="noted", why="evaluation.patience counts evaluations")
        if any(str(rule.get("metric") or "eval/").startswith("eval/") for rule in acting):
            return replace(found, identity="noted", why="a watch rule acts on evaluations")
    elif top == "watch" and acting:
        return replace(found, identity="noted", why="a watch rule does more than warn")
    elif top == "checkpoints" and any(rule.get("action") == "rollback" for rule in acting):
        return replace(found, identity="noted", why="a watch rule goes back to checkpoints")
    elif (
        found.key == "distributed"
        and getattr(config.policy, "dtype", None) == "bfloat16"
        and not getattr(config.policy, "lora", None)
    ):
        return replace(
            found,
            identity="noted",
            why="weights that are cut are bfloat16 while they are gathered, and round otherwise",
        )
    elif found.key == "device" and _device(found.there) == _device(found.here):
        return replace(found, identity="free")
    return found


def _acting(watch: Any) -> list[Mapping[str, Any]]:
    rules = watch.values() if isinstance(watch, Mapping) else ()
    return [rule for rule in rules if isinstance(rule, Mapping) and rule.get("action", "warn") != "warn"]


def _device(name: Any) -> Any:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
