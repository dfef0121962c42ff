"""`key.sub=value` on top of a plain mapping: what the text means is up to the type of the field that it sets.

A field of texts takes the text as it stands; numbers, lists and mappings are YAML; what YAML would drop or change (a comment,
an anchor, quotes around a text) is taken literally or refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from grpo_mm import registry
from grpo_mm.config.yaml_text import BadYaml, compose, value_of
from grpo_mm.errors import ConfigError
from grpo_mm.outside import is_text, shown
from grpo_mm.registry import role_of


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; lists and scalars replace; a mapping of another `kind`, or an empty one, replaces the whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if (
            isinstance(value, Mapping)
            and value
            and isinstance(old, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def check_overrides(overrides: Any) -> None:
    """Raises ConfigError unless they are a list of texts."""
    if isinstance(overrides, (str, Mapping)) or not isinstance(overrides, Sequence):
        raise ConfigError(
            f'overrides are {shown(overrides)}; wanted a list of texts such as ["optim.lr=1e-5", "steps=100"].'
        )
    for text in overrides:
        if not isinstance(text, str):
            raise ConfigError(
                f'override {shown(text)} is no text; wanted one of the form "key.sub=value", e.g. "optim.lr=1e-5".'
            )


def override(mapping: dict[str, Any], text: str, of: type | None = None) -> dict[str, Any]:
    """Sets one `key.sub=value` in a plain mapping, which is changed and returned; list entries go by index.

    A mapping is merged into the one that is there; `key={}` empties it. `of`: the dataclass that the mapping describes.
    """
    key, sign, value_text = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"override {shown(text)} is not of the form key.sub=value, e.g. optim.lr=1e-5.")
    if not is_text(text) or "\0" in text:
        raise ConfigError(f"override {shown(text)} holds what is no text: NUL, or bytes that are not UTF-8.")
    steps = key.split(".")
    try:
        value = _value(value_text, None if of is None else annotation_at(of, mapping, steps))
    except BadYaml as error:
        raise ConfigError(f"override {shown(text)}: the value is not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"override {shown(text)}: {error}") from error
    node: Any = mapping
    for step in steps[:-1]:
        node = node[_list_index(node, step, text)] if isinstance(node, list) else node.setdefault(step, {})
        if isinstance(node, str):
            raise ConfigError(f"override {shown(text)}: {step} is {shown(node)}, a plain value; set {step} itself.")
        if node is None or not isinstance(node, (dict, list)):
            raise ConfigError(
                f"override {shown(text)}: {step} is {shown(node)} and has no keys; set {step} itself, {step}={{…}}."
            )
    if isinstance(node, list):
        node[_list_index(node, steps[-1], text)] = value
    elif value:
        node.update(merge(node, {steps[-1]: value}))  # of another kind it replaces what is there
    else:
        node[steps[-1]] = value
    return mapping


def _list_index(node: list[Any], step: str, override: str) -> int:
    if not (step.isascii() and step.isdigit()) or len(step) > 9 or int(step) >= len(node):
        raise ConfigError(f"override {shown(override)}: {shown(step)} is no index of a list with {len(node)} entries.")
    return int(step)


def annotation_at(of: type, mapping: Any, steps: Sequence[str]) -> Any:
    """The annotation of the field that dotted steps lead to; None where that cannot be told."""
    annotation, value = of, mapping
    for step in steps:
        annotation = _annotation_within(annotation, value, step)
        if annotation is None:
            return None
        if isinstance(value, list):
            value = value[int(step)] if step.isascii() and step.isdigit() and int(step) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return annotation


def _annotation_within(annotation: Any, value: Any, step: str) -> Any:
    role = role_of(annotation)
    if role is not None:
        kind = value.get("kind") if isinstance(value, Mapping) else value
        if step == "kind":
            return str
        try:
            annotation = registry.lookup(role.name, kind) if isinstance(kind, str) else None
        except ConfigError:  # `build` tells it
            return None
    options = _options(annotation)
    if len(options) > 1:
        return next((o for o in options if dataclasses.is_dataclass(o)), None) and _annotation_within(
            next(o for o in options if dataclasses.is_dataclass(o)), value, step
        )
    annotation = options[0]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if role_of(annotation) is not None and role is None:
        return _annotation_within(annotation, value, step)
    if origin in (list, tuple) and args:
        return args[0] if isinstance(value, list) else _annotation_within(args[0], value, step)
    if origin is dict:
        return args[1]
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return typing.get_type_hints(annotation, include_extras=True).get(step)
    return None


def _options(annotation: Any) -> list[Any]:
    """The parts of a union without None; of anything else the annotation itself."""
    if role_of(annotation) is None and typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [a for a in typing.get_args(annotation) if a is not type(None)]
    return [annotation]


def _value(text: str, annotation: Any) -> Any:
    options = _options(annotation)
    if all(option is str or _is_words(option) for option in options):
        return _text(text, may_be_null=options != [annotation])
    if not text:
        return ""
    node = compose(text)
    is_open = annotation is None or annotation is Any
    if node is None or not isinstance(node, yaml.ScalarNode):
        if is_open and node is not None and not node.flow_style:
            raise ConfigError(f"YAML reads {shown(text)} as a list or a mapping; write it as [x] or {{a: b}}.")
        if node is None or node.end_mark.index < len(text.rstrip()):
            raise ConfigError(f"what follows a # is a comment in YAML and would be dropped: {shown(text)}.")
        return value_of(node)
    whole, value = node.end_mark.index >= len(text.rstrip()), value_of(node)
    if node.style in ("'", '"'):
        if not whole:
            raise ConfigError(f"{shown(text)} goes on after its quotes. Leave them out, or end with them.")
        return value
    if whole and node.value == text.strip():
        exact = isinstance(value, (bool, type(None))) or not is_open or str(value) == node.value
        return text if isinstance(value, str) or not exact else value
    if not isinstance(value, str) and not is_open:
        raise ConfigError(f"YAML would drop or change a part of {shown(text)}. Leave out what is no part of the value.")
    return text


def _is_words(option: Any) -> bool:
    return typing.get_origin(option) is Literal and all(isinstance(word, str) for word in typing.get_args(option))


def _text(text: str, *, may_be_null: bool) -> str | None:
    """The text as it stands; `null` is None where the field may have none."""
    if may_be_null and text == "null":
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]:
        raise ConfigError(f"the text {text} is taken as it stands, with its quotes. Leave them out.")
    return text
