"""YAML as the graph it is: bounded in size and depth, every key once, plain words as YAML 1.2 reads them, a tree at the end.

Of YAML 1.1 stay `1e-5` (a text, which a number's field makes a number) and the merge key `<<`. Words that YAML 1.1 turns into
something else stay the text that stands there, and the field decides: yes, no, on, off; 0123 (octal), 12:30:45 (base 60),
1_000, 0b101; 2026-11-29 (a date).
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from grpo_mm.errors import ConfigError
from grpo_mm.outside import is_text, plain, shown

LARGEST = 1_000_000
"""Bytes of a file; of published settings the largest has 4,000."""
MOST_VALUES = 50_000
"""Keys and values, those that an alias (`*name`) repeats counted as often as they stand there."""
MOST_CHARACTERS = 4_000_000
"""Of texts, counted in the same way."""
DEEPEST = 100
"""Levels of nesting, aliases followed."""
TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge"))


class BadYaml(ValueError):
    """Text that is no YAML, or more of it than a config can be."""


def read_yaml_file(path: Path) -> Any:
    """The value that a file holds.

    Raises:
        ConfigError: not there, not UTF-8, too large, no YAML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{plain(str(path))} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(data) > LARGEST:
        raise ConfigError(f"{path} has more than {LARGEST:,} bytes, which no config has. Is it the right file?")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"{path} is not valid YAML: it is UTF-16. Save it as UTF-8.")
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}. Save it as UTF-8.") from error
    except BadYaml as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """The value of one document, without shared parts.

    Raises:
        BadYaml: see there.
    """
    return value_of(compose(text))


def compose(text: str) -> yaml.Node | None:
    """The checked graph of nodes; None for an empty text."""
    try:
        loader = _Bounded(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise BadYaml(_told(error)) from error
    except RecursionError:
        raise BadYaml("nested too deeply") from None


def value_of(node: yaml.Node | None) -> Any:
    """What a checked graph stands for."""
    if node is None:
        return None
    loader = _Bounded("")
    try:
        return _tree(loader.construct_document(node))
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError: a number after `!!int` that is none
        raise BadYaml(_told(error)) from error
    except LookupError as error:  # a word after `!!bool` that is no switch
        raise BadYaml(
            f"{shown(error.args[0] if error.args else '', 60)} is not of the type that its tag names"
        ) from error
    finally:
        loader.dispose()


def _told(error: Exception) -> str:
    return plain(" ".join(str(error).replace('in "<unicode string>", ', "in ").split()), 600)


class _Bounded(yaml.SafeLoader):
    """Counts while it composes, so that a bomb is refused before it is built."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.composed = 0
        self.measured: dict[int, tuple[int, int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self.depth += 1
        self.composed += 1
        if self.depth > DEEPEST:
            raise ComposerError(None, None, f"nested more than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and id(node) not in self.measured:
            raise ComposerError(None, None, "a value holds itself", mark)
        if not is_alias:
            if node.tag not in TAGS:
                raise ComposerError(None, None, f"the tag {shown(node.tag, 60)} is not allowed in a config", mark)
            self.measured[id(node)] = self._measure(node)
        values, characters, levels = self.measured[id(node)]
        if max(values, self.composed) > MOST_VALUES:
            raise ComposerError(None, None, f"more than {MOST_VALUES:,} values, aliases followed", mark)
        if characters > MOST_CHARACTERS:
            raise ComposerError(None, None, f"more than {MOST_CHARACTERS:,} characters, aliases followed", mark)
        if levels > DEEPEST:
            raise ComposerError(None, None, f"nested more than {DEEPEST} levels, aliases followed", mark)
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """With every key a text that stands once; otherwise the first of two would be ignored silently."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ComposerError(None, None, "a key is a list or a mapping", key.start_mark)
            if key.value in seen:
                raise ComposerError(None, None, f"the key {shown(key.value, 60)} stands twice", key.start_mark)
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return node

    def _measure(self, node: yaml.Node) -> tuple[int, int, int]:
        """Values, characters and levels of a node, aliases followed."""
        if isinstance(node, yaml.ScalarNode):
            return 1, len(node.value), 1
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        found = [self.measured[id(part)] for part in parts]
        return (
            1 + sum(values for values, _, _ in found),
            sum(characters for _, characters, _ in found),
            1 + max((levels for _, _, levels in found), default=0),
        )


def _int(loader: _Bounded, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 16) if "x" in text.lower() else int(text)


def _float(loader: _Bounded, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


for _name, _words, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|[-+]?0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):  # fmt: skip
    _Bounded.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_words})$"), list(_first))
_Bounded.add_constructor("tag:yaml.org,2002:int", _int)
_Bounded.add_constructor("tag:yaml.org,2002:float", _float)


def _tree(value: Any) -> Any:
    """A copy in which nothing stands in two places: what is changed in one would change in the other."""
    if isinstance(value, dict):
        return {_character_checked(key): _tree(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_tree(part) for part in value]
    return _character_checked(value) if isinstance(value, str) else value


def _character_checked(text: str) -> str:
    if not is_text(text):
        raise ValueError(f"{shown(text, 60)} holds half of a character (a lone surrogate)")
    if "\0" in text:
        raise ValueError(f"{shown(text, 60)} holds the character NUL")
    return text
