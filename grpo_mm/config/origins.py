"""The resolved config as YAML in which every value that the config does not say itself is marked with whose it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_mm.config.by_policy import filled, policy_kind
from grpo_mm.config.run_config import own_mapping, read_mapping
from grpo_mm.config.settings import Settings
from grpo_mm.config.typed_yaml import dump, own_settings, read_yaml

ABSENT = object()


def marked_yaml(source: Path | Mapping[str, Any], overrides: Sequence[str], config: Settings) -> str:
    """YAML of `config`, which was read from a file or a mapping with `overrides`; comments say where values come from.

    Example of a line: `clip_low: 0.2  # default for texts: policy vlm`
    """
    if isinstance(source, Mapping):
        own, given = own_mapping(source), read_mapping(source, overrides, unset=[])
    else:
        own, given = own_settings(source), read_yaml(source, overrides, type(config), unset=[])
    layers = Layers(
        own=own, overridden=[text.partition("=")[0] for text in overrides], method=given.get("method"),
        given=given, by_policy=filled(given), policy=policy_kind(config.policy),
    )  # fmt: skip
    return "\n".join(_lines(dump(config), (), "run", layers)) + "\n"


class Layers:
    """What says a value, from the file to the defaults."""

    def __init__(
        self, *, own: Mapping[str, Any], overridden: Sequence[str], method: Any, given: Mapping[str, Any],
        by_policy: Mapping[str, Any], policy: str,
    ) -> None:  # fmt: skip
        self.own, self.given, self.by_policy = own, given, by_policy
        self.overridden, self.method, self.policy = overridden, method, policy

    def mark(self, key: tuple[str, ...], owner: str) -> str:
        """A comment, "" for what stands in the file."""
        dotted = ".".join(key)
        if any(dotted == name or dotted.startswith(f"{name}.") for name in self.overridden):
            return "  # set on the command line"
        if _at(self.given, key) is not ABSENT:
            return "" if _at(self.own, key) is not ABSENT or self.method is None else f"  # of method {self.method}"
        if _at(self.by_policy, key) is not ABSENT:
            return f"  # default for policy {self.policy}"
        return f"  # default of {owner}"


def _at(settings: Any, key: Sequence[str]) -> Any:
    """The value at a key of plain settings as a user may write them: a kind as a text, a list of one without brackets."""
    for name in key:
        if name.isdigit() and not isinstance(settings, Mapping):
            settings = settings if isinstance(settings, (list, tuple)) else [settings]
            settings = settings[int(name)] if int(name) < len(settings) else ABSENT
        elif isinstance(settings, Mapping):
            settings = settings.get(name, ABSENT)
        elif isinstance(settings, str) and name == "kind":
            return settings
        elif settings is None or isinstance(settings, (str, int, float)):
            return ABSENT
        else:
            return settings  # an object of a mapping: all of it is the user's own
        if settings is ABSENT:
            return ABSENT
    return settings


def _lines(value: Mapping[str, Any], key: tuple[str, ...], owner: str, layers: Layers) -> Iterator[str]:
    """Block YAML of a mapping, two spaces a level."""
    holder = owner
    if "kind" in value:
        owner = f"{key[0]} {value['kind']}" if len(key) == 1 else str(value["kind"])
    for name, part in value.items():
        inside, said = (*key, str(name)), _scalar(name)
        section = f"{key[-1]}.{name}" if key and not key[-1].isdigit() and owner == "run" else str(name)
        if isinstance(part, Mapping) and part:
            yield f"{said}:"
            yield from (f"  {line}" for line in _lines(part, inside, section if owner == "run" else owner, layers))
        elif isinstance(part, list) and any(isinstance(one, Mapping) and one for one in part):
            yield f"{said}:"
            for number, one in enumerate(part):
                lines = (
                    list(_lines(one, (*inside, str(number)), owner, layers))
                    if isinstance(one, Mapping) and one
                    else [_scalar(one)]
                )
                yield f"- {lines[0]}"
                yield from (f"  {line}" for line in lines[1:])
        else:
            yield f"{said}: {_scalar(part)}{layers.mark(inside, holder if name == 'kind' else owner)}"


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).strip()
    return text.removesuffix("\n...").strip()
