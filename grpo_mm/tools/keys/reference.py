"""docs/reference.md: every key of a config with its type, its default, what a change of it means for a run, and its meaning."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import yaml

from grpo_mm import registry
from grpo_mm.config.key_docs import default_of, first_sentence
from grpo_mm.config.run_config import RunConfig
from grpo_mm.identity import OF_A_ROLE, OF_A_USER, Identity, identity_of
from grpo_mm.tools.keys.field_docs import has_fields, type_of
from grpo_mm.tools.keys.key_texts import meaning_of

HEAD = f"""# Keys

Made by `python docs/scripts/reference.py` from the dataclasses themselves; a test fails when it is stale.

*When changed* says what becomes of a run that has begun, or of one that has ended and is given more `steps`:

- **free**: beyond rounding it changes nothing that is computed. The same command goes on, and nothing is asked.
- **noted**: the run may go on if you say so: `--accept`, in Python `accept=True`. `changes.jsonl`, the summary, the report and the
  model card then tell what was changed, and after which step. Edited code of your own (rewards, readers, any component) and edited
  data files are noted as well; `sources.json` in the run folder has their digests. A data file above 64 MiB counts by its size, its
  time and its first and last MiB, a folder by the names and sizes of its first 1000 files. Pictures and videos that rows name count
  by what is in them (beyond 64 MiB or 1000 of a source by their sizes), rows of a hub's data set or of your own reader as they are read.
- **refused**: it would be another run. Use another `name`, or `--fresh`, which moves the old run aside to `NAME.1`.

Some depend on others. `steps` is noted where the learning rate falls with them (`optim.schedule`); `evaluation.every` where
`evaluation.patience` or a watch rule that acts counts evaluations; `watch` where a rule does more than warn, `checkpoints` where one
goes back to them; `device` is free where `auto` means the same one. What lies in a free key is free. A field of a component of your own
is {OF_A_USER} unless it says otherwise: `field(default=8, metadata=FREE)`, with `FREE`, `NOTED`, `REFUSED` of `grpo_mm.identity`. Which
component a key names (its `kind`) has the class of that key. A run without a checkpoint gives way to another
config; a product that it left moves aside.
"""

SKIPPED = ("preset", "prediction_file")
"""Roles that no key of a config names."""


def reference_page() -> str:
    """The whole page as Markdown."""
    lines = [HEAD, "## Of every run", "", *_table(_rows(RunConfig, "", "refused"))]
    lines += _said_by_policies()
    roles = list(dict.fromkeys(entry.role for entry in registry.table() if entry.role not in SKIPPED))
    for role in roles:
        lines += ["", f"## {role}", "", f"Fields that say nothing else are {OF_A_ROLE.get(role, OF_A_USER)}."]
        bare = []
        for entry in registry.entries(role):
            found = registry.load(entry.target)
            rows = list(_rows(found, "", OF_A_ROLE.get(role, OF_A_USER))) if has_fields(found) else []
            if rows:
                lines += [
                    "",
                    f"### {role} `{entry.kind}`",
                    "",
                    first_sentence(inspect.getdoc(found) or ""),
                    "",
                    *_table(rows),
                ]
            else:
                bare.append(f"`{entry.kind}`")
        lines += ["", f"Without settings: {', '.join(bare)}."] if bare else []
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _said_by_policies() -> list[str]:
    """Defaults that are a matter of what a policy makes, in its own words."""
    lines = [
        "",
        "## What policies say",
        "",
        "These stand below everything that a config, its parent or its method says.",
        "",
    ]
    for entry in registry.entries("policy"):
        cls = registry.load(entry.target)
        if hasattr(cls, "defaults"):
            needed = {f.name: None for f in dataclasses.fields(cls) if default_of(f) == "required"}
            said = dict(cls(**needed).defaults(None))
            kinds = [f"# any {fits} without them: {settings}" for fits, settings in said.pop("kinds", ())]
            text = yaml.safe_dump(said, sort_keys=False, default_flow_style=None, width=120).strip()
            words = inspect.cleandoc(cls.defaults.__doc__).partition("\n\n")[2]
            lines += [f"### policy `{entry.kind}`", "", words, "", "```yaml", text, *kinds, "```", ""]
    return lines


def _rows(cls: type, key: str, within: Identity) -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        here, identity = f"{key}{field.name}", identity_of(field, within)
        yield here, type_of(hints[field.name]), default_of(field), identity, first_sentence(meaning_of(cls, field.name))
        for inner, name in _settings(hints[field.name], here):
            yield from _rows(inner, f"{name}.", identity)


def _settings(annotation: Any, key: str) -> Iterator[tuple[type, str]]:
    """Dataclasses that are no components, with the key below which their fields stand."""
    if registry.role_of(annotation) is not None:
        return
    if inspect.isclass(annotation) and dataclasses.is_dataclass(annotation):
        yield annotation, key
    origin = typing.get_origin(annotation)
    for part in typing.get_args(annotation):
        yield from _settings(part, f"{key}.NAME" if origin is dict else f"{key}.0" if origin in (list, tuple) else key)


def _table(rows: Any) -> list[str]:
    head = ["| key | type | default | when changed | meaning |", "| --- | --- | --- | --- | --- |"]
    return [*head, *(f"| `{key}` | {' | '.join(_cell(part) for part in rest)} |" for key, *rest in rows)]


def _cell(text: str) -> str:
    """As words of a table: no cell of its own, no markup but code."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else re.sub(r"([*<>])", r"\\\1", part) for number, part in enumerate(parts))
