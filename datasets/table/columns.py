"""Which column holds what: as the config names them, else by their usual names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_mm.datasets.shared.columns import no_field
from grpo_mm.datasets.shared.media_fields import is_empty
from grpo_mm.datasets.shared.usual_names import SPAN_PAIRS, USUAL, folded
from grpo_mm.datasets.table.edit_columns import sizes_apart, take_edit
from grpo_mm.errors import ConfigError
from grpo_mm.media_words import names_media
from grpo_mm.outside import plain, shown

ROLES = (
    "messages", "question", "image", "video", "source_image", "reference_image", "edited_image", "mask", "answer", "span", "boxes", "options", "id", "answer_type", "duration",
    "width", "height", "system", "history",
)  # fmt: skip
LETTER_COLUMNS = (tuple("ABCDEFGH"), tuple("abcdefgh"))
_NUMBERED = re.compile(r"(image|img|picture|video)_?(\d{1,2})")
_OPTION = re.compile(r"(?:option|choice|opt)_?([a-h]|\d)")
_TALKS = ("messages", "conversations", "conversation", "prompt", "texts", "dialog", "dialogue", "chat")
_SPEAKS = ({"role", "content"}, {"from", "value"}, {"user", "assistant"})


@dataclass(frozen=True)
class Taken:
    """Example: Taken({"question": ("query",), "span": ("start", "end")}, found=("question",)): the span was named."""

    columns: Mapping[str, tuple[str, ...]]
    """Role → its columns; roles that no column has are missing."""
    found: tuple[str, ...] = ()
    """Roles whose columns go by a usual name and were not named."""
    for_rewards: tuple[str, ...] = ()
    """Columns of pictures that go into the target, as if the config named them in `for_rewards`."""

    def __getitem__(self, role: str) -> tuple[str, ...]:
        return self.columns.get(role, ())

    @property
    def used(self) -> set[str]:
        return {column for columns in self.columns.values() for column in columns}

    def told(self) -> str:
        """ "question from 'query', span from 'start' and 'end'" of what was found; "" if all was named."""
        return ", ".join(f"{role} from {' and '.join(map(shown, self.columns[role]))}" for role in self.found)


def take_columns(
    rows: Sequence[Mapping[str, Any]],
    columns: Iterable[str],
    named: Mapping[str, tuple[str, ...]],
    *,
    features: Mapping[str, str],
    aside: Sequence[str],
    where: str,
) -> Taken:
    """The columns of each role.

    Args:
        rows: the first rows, by whose values a conversation is told from a text.
        columns: all there are.
        named: role → columns, of the config.
        features: column → "image", "video" or "audio", as the source declares it.
        aside: columns that the config leaves to rewards, or out.

    Raises:
        ConfigError: a named column is not there, or two columns may hold the pictures.
    """
    names = list(columns)
    for column in dict.fromkeys([*(c for cs in named.values() for c in cs), *aside]):
        if column not in names:
            raise no_field(column, names, where)
    spoken = {column for cs in named.values() for column in cs} | set(aside)
    free = {folded(name): name for name in reversed(names) if name not in spoken}
    found: dict[str, tuple[str, ...]] = {}

    def usual(role: str, candidates: Iterable[str]) -> None:
        if role not in named and (column := next((free[c] for c in candidates if c in free), None)) is not None:
            found[role] = (column,)
            del free[folded(column)]

    if "messages" not in named and "question" not in named:
        usual("messages", (c for c in _TALKS if c in free and _is_talk(rows, free[c])))
    take_edit(rows, free, found, named, features)  # first: "input_image" is no picture that a question is about
    is_edit = any(role in named or role in found for role in ("source_image", "edited_image"))
    aside = [*aside, *(raw := sizes_apart(free, {**named, **found}, features))]
    for name in raw:
        del free[folded(name)]
    for kind in ("video", "image"):
        if kind not in named:
            _usual_media(kind, rows, free, found, features, where)
    talks = "messages" in named or "messages" in found
    if not talks:
        if (
            "question" not in named and {"instruction", "input"} <= set(free) and not is_edit
        ):  # the second goes on where the first ends
            found["question"] = (free.pop("instruction"), free.pop("input"))
        usual("question", USUAL["question"])
    if talks or "video" in named or "video" in found:
        _usual_spans(named, free, found)
        usual("duration", USUAL["duration"])
    if talks or any(role in named or role in found for role in ("image", "source_image")):
        usual("boxes", USUAL["boxes"])
        usual("width", USUAL["width"])
        usual("height", USUAL["height"])
    usual("options", USUAL["options"])
    if "options" not in named and "options" not in found:
        _usual_options(free, found)
    if not is_edit:  # what is called output or target there describes the picture after
        usual("answer", (*USUAL["answer"], "reward_model"))
    for role in ("id", "answer_type"):
        usual(role, USUAL[role])
    usual("system", ("system", "system_prompt"))
    usual("history", ("history",))
    taken = {**found, **{role: cs for role, cs in named.items() if cs}}
    return Taken(taken, tuple(r for r in ROLES if r in found), tuple(raw))


def _is_talk(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row.get(column) for row in rows if row.get(column) is not None]
    return bool(values) and all(is_talk(value) for value in values)


def is_talk(value: Any) -> bool:
    """Whether a value is a list of turns, in one of the forms of other tool kits, or that as a text of JSON."""
    if isinstance(value, str):
        return value.lstrip()[:2] in ("[{", "[ ", "[\n") and ('"role"' in value or '"from"' in value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and any(keys <= set(turn) for keys in _SPEAKS) for turn in value)
    )


def _usual_media(
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    free: dict[str, str],
    found: dict[str, tuple[str, ...]],
    features: Mapping[str, str],
    where: str,
) -> None:
    declared = [name for name in free.values() if features.get(name) == kind]
    usual = [free[c] for c in USUAL[kind] if c in free and _may_be(kind, rows, free[c], features)]
    numbered = sorted(
        [
            (int(m[2]), name)
            for c, name in free.items()
            if (m := _NUMBERED.fullmatch(c)) and ("video" in m[1]) == (kind == "video")
        ]
    )
    if not usual and numbered:
        candidates = [name for _, name in numbered]
    else:
        candidates = usual or declared
        if len({name for name in candidates if _is_used(rows, name)} | set(candidates[:1])) > 1:
            raise ConfigError(
                f"{where}: {' and '.join(map(shown, candidates))} may both hold the {kind}s. Set `{kind}` to the one that does, and name "
                "the other in `for_rewards` or `ignore`."
            )
    if candidates:
        found[kind] = tuple(candidates)
        for name in candidates:
            del free[folded(name)]


def _may_be(kind: str, rows: Sequence[Mapping[str, Any]], name: str, features: Mapping[str, str]) -> bool:
    """Not where the source says that it is something else, or the file's name does."""
    if name in features:
        return features[name] == kind
    if folded(name) != "file_name":
        return True
    value = next((row[name] for row in rows if isinstance(row.get(name), str)), "")
    is_video = plain(value).lower().endswith((".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v"))
    return is_video == (kind == "video")


def _is_used(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(not is_empty(row.get(name)) for row in rows)


def _usual_spans(named: Mapping[str, Any], free: dict[str, str], found: dict[str, tuple[str, ...]]) -> None:
    if "span" in named:
        return
    pair = next((pair for pair in SPAN_PAIRS if set(pair) <= set(free)), None)
    one = next((c for c in USUAL["span"] if c in free), None)
    names = pair or ((one,) if one else ())
    if names:
        found["span"] = tuple(free.pop(name) for name in names)


def _usual_options(free: dict[str, str], found: dict[str, tuple[str, ...]]) -> None:
    """Options in columns of their own: A, B, C, …, or option_a, option_b, …, or choice_1, …"""
    original = {name: c for c, name in free.items()}
    for letters in LETTER_COLUMNS:
        own = [letter for letter in letters if letter in original]
        if len(own) >= 2 and own == list(letters[: len(own)]):
            break
    else:
        marked = [(found[1], name) for c, name in free.items() if (found := _OPTION.fullmatch(c))]
        own = [name for _, name in sorted(marked)]
    if len(own) >= 2:
        found["options"] = tuple(own)
        for name in own:
            del free[folded(name)]


def looks_like_media(column: str, features: Mapping[str, str]) -> bool:
    """By its name or its declared feature alone."""
    return column in features or names_media(column)
