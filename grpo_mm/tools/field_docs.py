"""What is written under the fields of dataclasses, and their defaults and types in the words of a config."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from grpo_mm import registry


def doc_of(cls: type, name: str) -> str:
    """The docstring right under a field, of the class that declares it; "" where there is none."""
    for one in cls.__mro__:
        if name in vars(one).get("__annotations__", {}):
            return _docs(one).get(name, "")
    return ""


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default as YAML would have it; "required" where there is none."""
    if field.default is not dataclasses.MISSING:
        return _written(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _written(field.default_factory())
    return "required"


def type_of(annotation: Any) -> str:
    """ "whole number or null", "one of group, action", "a policy (a kind)" …"""
    role = registry.role_of(annotation)
    if role is not None:
        return f"a component with `kind` ({role.name})"
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
        "settings" if dataclasses.is_dataclass(annotation) else getattr(annotation, "__name__", str(annotation)),
    )


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, (str, int, float)):
        return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    if isinstance(value, Mapping):
        return "{}" if not value else "{…}"
    thing = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    target = f"{thing.__module__}:{thing.__qualname__}"
    return next((entry.kind for entry in registry.table() if entry.target == target), "its own defaults")


@cache
def _docs(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found, name = {}, None
    for node in getattr(tree, "body", ()):
        if name is not None and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = inspect.cleandoc(str(node.value.value))
        name = node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else None
    return found
