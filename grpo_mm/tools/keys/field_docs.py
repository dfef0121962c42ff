"""The types of a config's fields in words."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

from grpo_mm import registry


def has_fields(thing: Any) -> bool:
    """Whether it is a class whose fields are settings."""
    return inspect.isclass(thing) and dataclasses.is_dataclass(thing)


def type_of(annotation: Any) -> str:
    """ "whole number or null", "one of group, action", "a policy (a kind)" …"""
    role = registry.role_of(annotation)
    if role is not None:
        return f"{role.name} component"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is typing.Annotated:
        return type_of(args[0])
    if origin is dict:
        return f"names, each with {type_of(args[1])}"
    if origin in (list, tuple):
        of = list(dict.fromkeys(type_of(part) for part in args if part is not Ellipsis))
        any_length = origin is list or Ellipsis in args
        return f"list of {of[0]}" if any_length and of else f"list of {len(args)}: {', '.join(of)}"
    if args:
        return " or ".join(dict.fromkeys(type_of(part) for part in args))
    names = {
        type(None): "null",
        Any: "anything",
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
    }
    return names.get(
        annotation,
        "settings" if has_fields(annotation) else getattr(annotation, "__name__", str(annotation)),
    )
