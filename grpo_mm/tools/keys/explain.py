"""`grpo-mm explain`: what a key of a config, a component or a method means, from the texts that stand beside the code."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from grpo_mm import registry
from grpo_mm.config.key_docs import default_of
from grpo_mm.config.methods import METHODS, Method
from grpo_mm.config.settings import Settings
from grpo_mm.config.synonyms import here_it_is
from grpo_mm.config.yaml_text import read_yaml_file
from grpo_mm.errors import UserError
from grpo_mm.outside import shown
from grpo_mm.tools.keys.field_docs import has_fields, type_of
from grpo_mm.tools.keys.key_texts import meaning_of

UNNAMED = ("preset", "prediction_file")
"""Roles that no key of a config names."""
MOST = 12
"""Keys of one name that are explained in full."""


@dataclass(frozen=True)
class Key:
    """One field that a config can set. Example: Key(("policy", "micro_batch"), "policy vlm", VlmPolicyConfig, field, int)."""

    steps: tuple[str, ...]
    """NAME stands for any name, N for the number in a list."""
    of: str
    """The component that has it, as "policy vlm"; "" where every run has it."""
    cls: type
    field: dataclasses.Field[Any]
    annotation: Any

    @property
    def dotted(self) -> str:
        return ".".join(self.steps)

    def fits(self, asked: tuple[str, ...]) -> bool:
        return len(asked) == len(self.steps) and all(
            own == other or own == "NAME" or (own == "N" and other.isdigit()) for own, other in zip(self.steps, asked)
        )


def explain(*words: str) -> list[str]:
    """Lines on a key ("policy.micro_batch", or "micro_batch" alone), a kind ("temporal_iou", "reward temporal_iou"), a role
    ("reward") or a method ("dapo").

    Raises:
        UserError: there is nothing of that name; with near names, and with what the word of another tool kit is here.
    """
    asked = " ".join(words).strip()
    found = [*_methods(asked), *_kinds(asked), *_roles(asked), *_keys(asked)]
    if found:
        return found
    here = here_it_is(asked)
    names = {key.dotted for key in all_keys()} | {key.steps[-1] for key in all_keys()}
    names |= {entry.kind for entry in _entries()} | {method.name for method in METHODS}
    near = difflib.get_close_matches(asked, sorted(names), n=4)
    raise UserError(
        f"there is no key, component or method {shown(asked)}"
        + (f": {here}." if here else "." + (f" Did you mean {', '.join(near)}?" if near else ""))
        + (
            ""
            if here or near
            else " `grpo-mm show CONFIG` prints all keys of a config, `grpo-mm methods` all components."
        )
    )


@cache
def all_keys() -> tuple[Key, ...]:
    """Every key of every component, those of all runs first."""
    return tuple(_fields(Settings, (), of="", within=frozenset()))


def _fields(cls: type, steps: tuple[str, ...], *, of: str, within: frozenset[str]) -> Iterator[Key]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if field.init:
            here = (*steps, field.name)
            yield Key(here, of, cls, field, hints[field.name])
            yield from _below(hints[field.name], here, of=of, within=within)


def _below(annotation: Any, steps: tuple[str, ...], *, of: str, within: frozenset[str]) -> Iterator[Key]:
    role = registry.role_of(annotation)
    if role is not None:
        if role.name not in within:  # a reward may hold rewards
            for entry in registry.entries(role.name):
                thing = registry.load(entry.target)
                if has_fields(thing):
                    yield from _fields(thing, steps, of=f"{role.name} {entry.kind}", within=within | {role.name})
        return
    if inspect.isclass(annotation) and dataclasses.is_dataclass(annotation):
        yield from _fields(annotation, steps, of=of, within=within)
        return
    origin = typing.get_origin(annotation)
    further = ("NAME",) if origin is dict else ("N",) if origin in (list, tuple) else ()
    for part in typing.get_args(annotation):
        yield from _below(part, (*steps, *further), of=of, within=within)


def _keys(asked: str) -> list[str]:
    steps = tuple(asked.split("."))
    exact = [key for key in all_keys() if key.fits(steps)]
    found = exact or [key for key in all_keys() if key.dotted.endswith(f".{asked}")]
    alike: dict[tuple[Any, ...], list[Key]] = {}
    for key in found:  # the same field of the same class stands at several places
        alike.setdefault((key.cls, key.field.name), []).append(key)
    lines: list[str] = []
    for keys in list(alike.values())[:MOST]:
        lines += _told(keys)
    rest = list(alike.values())[MOST:]
    if rest:
        lines.append(f"and {len(rest)} more: {', '.join(dict.fromkeys(f'{k[0].dotted} ({k[0].of})' for k in rest))}")
    return lines


def _told(keys: list[Key]) -> list[str]:
    key = keys[0]
    where = list(dict.fromkeys(f"{one.dotted}{f'  ({one.of})' if one.of else ''}" for one in keys))
    lines = [where[0]]
    if len(where) > 1:
        lines.append(f"  also {', '.join(where[1:4])}{f' and {len(where) - 4} more' if len(where) > 4 else ''}")
    lines.append(f"  {type_of(key.annotation)}; default: {default_of(key.field) or 'its own defaults'}")
    role = _role_within(key.annotation)
    doc = meaning_of(key.cls, key.field.name)
    if doc:
        lines += _indented(doc)
    elif key.cls is not Settings:
        lines += _indented("\n".join(_of_the_whole(key)))
    if role:
        lines.append(f"  kinds: {', '.join(entry.kind for entry in registry.entries(role))}, or package.module:Name")
    settings = next((part for part in _parts(key.annotation) if has_fields(part)), None)
    if settings is not None:
        lines += _indented(_paragraph(inspect.getdoc(settings) or ""))
        lines += _settings(settings)
    return lines


def _of_the_whole(key: Key) -> list[str]:
    """What the text of the component says, where the field has none: its start, and the lines that name the field."""
    text = inspect.getdoc(key.cls) or ""
    start = _paragraph(text)
    named = [line.strip() for line in text[len(start) :].splitlines() if re.search(rf"\b{key.field.name}\b", line)]
    return [f"{key.of or key.steps[-2]}: {start}", *named] if start else []


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _role_within(annotation: Any) -> str | None:
    return next((role.name for part in _parts(annotation) if (role := registry.role_of(part)) is not None), None)


def _settings(cls: type) -> list[str]:
    """A line for each setting of a component."""
    hints = typing.get_type_hints(cls, include_extras=True)
    lines = []
    for field in dataclasses.fields(cls):
        if field.init:
            doc = " ".join(meaning_of(cls, field.name).split())
            lines.append(
                f"    {field.name}: {type_of(hints[field.name])}; default: {default_of(field) or 'its own defaults'}{'. ' + doc if doc else ''}"
            )
    return lines


def _entries() -> list[registry.Entry]:
    return [entry for entry in registry.table() if entry.role not in UNNAMED]


def _kinds(asked: str) -> list[str]:
    words = asked.replace(".", " ").split()
    role, kind = (None, words[0]) if len(words) == 1 else (words[0], words[-1]) if len(words) == 2 else (None, "")
    lines: list[str] = []
    for entry in _entries():
        if entry.kind == kind and (role is None or role in (entry.role, f"{entry.role}s")):
            thing = registry.load(entry.target)
            lines.append(f"{entry.role} {entry.kind}" + (f"  ({entry.paper})" if entry.paper else ""))
            lines += _indented(inspect.getdoc(thing) or "")
            lines += _settings(thing) if has_fields(thing) else ["    it has no settings"]
            lines += [f"  used in {entry.config}"] if entry.config else []
    return lines


def _roles(asked: str) -> list[str]:
    """A line for each kind of a role."""
    lines = []
    for entry in _entries():
        if asked in (entry.role, f"{entry.role}s") and asked not in Settings.__dataclass_fields__:
            doc = " ".join(_paragraph(inspect.getdoc(registry.load(entry.target)) or "").split())
            lines.append(f"{entry.role} {entry.kind}: {doc}")
    return lines


def _methods(asked: str) -> list[str]:
    lines: list[str] = []
    for method in METHODS:
        if asked in (method.name, method.key) or asked in (f"method {method.name}", f"method {method.key}"):
            lines += _method(method)
    return lines


def _method(method: Method) -> list[str]:
    settings = read_yaml_file(method.file)
    keys = ", ".join(settings) if isinstance(settings, dict) else ""
    comment = [line.removeprefix("#").strip() for line in _comments(method)]
    return [
        f"method {method.key}: {method.title} (arXiv:{method.arxiv}, grade {method.grade})",
        f"  {method.changes}",
        *_indented("\n".join(comment)),
        f"  It fills in {keys}, where a config leaves them out: `method: {method.key}`.",
    ]


def _comments(method: Method) -> list[str]:
    lines = method.file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines[: next((i for i, x in enumerate(lines) if not x.startswith("#")), len(lines))]]


def _paragraph(text: str) -> str:
    return text.partition("\n\n")[0]


def _indented(text: str) -> list[str]:
    return [f"  {line}".rstrip() for line in text.splitlines()]
