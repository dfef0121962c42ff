"""What is written under the fields of dataclasses, for pages and commands that explain the keys of a config."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field
from functools import cache
from typing import Any

from grpo_mm import registry
from grpo_mm.config.settings import BY_POLICY


def doc_of(cls: type, name: str) -> str:
    """The docstring right under a field, of the class that declares it; "" where there is none."""
    for one in cls.__mro__:
        if name in vars(one).get("__annotations__", {}):
            return _docs(one).get(name, "")
    return ""


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    words = " ".join(text.split())
    for place, letter in enumerate(words):
        after = words[place + 1 : place + 3]
        if letter == "." and (not after or (after[0] == " " and not after[1:].islower())):
            return words[: place + 1]
    return words


def default_of(field: Field[Any]) -> str:
    """The default as YAML would have it; "required" where there is none."""
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "required"
    return _written(value)


def _written(value: Any) -> str:
    """A component by its kind; of settings within settings nothing, for their fields have their own defaults."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value is BY_POLICY:
        return "by the policy"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, (str, int, float)):
        return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    if isinstance(value, Mapping):
        return "{}" if not value else "{…}"
    thing = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    target = f"{thing.__module__}:{thing.__qualname__}"
    return next((entry.kind for entry in registry.table() if entry.target == target), "")


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
