"""What is recorded of a scorer, and where: `NAME.golden.json` beside the file of its class, a list of entries, one for each of its settings."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, place, plain, reason, shown

ENDING = ".golden.json"
NONE = "no scores of its golden pictures are recorded for these settings"


@dataclass(frozen=True)
class Golden:
    """Of one scorer with one set of settings; `unverified` says why there are no scores, or is empty."""

    scorer: str
    """The name of its class."""
    settings: Mapping[str, Any]
    """Those that change scores; of a path or a name on the hub its last part."""
    unverified: str = ""
    scores: Sequence[float] = ()
    """Of the three."""
    tolerance: float = 0.0
    faults: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Fault -> the scores that it leads to, for a message that names it."""
    blind_to: Sequence[str] = ()
    """Faults that move no score by more than twice the tolerance, so that they would not be found."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Setting/file -> SHA-256."""
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""


def kind_of_subjects(use: Any) -> str | None:
    """What golden subjects a reward is tried on; None for one that has no published weights."""
    return getattr(type(use), "goldens", None)


def settings_of(use: Any) -> dict[str, Any]:
    """The settings that change what it scores."""
    found = {}
    for one in fields(use):
        if one.init and one.metadata.get("identity") != "free":
            found[one.name] = _plain(getattr(use, one.name))
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__} | settings_of(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, str | Path) and "/" in str(value) and " " not in str(value):
        return str(value).rstrip("/").rpartition("/")[2]
    return value


def file_of(use: Any) -> Path:
    """Where the entries that ship with a scorer lie, whether there are any or not."""
    return Path(inspect.getfile(type(use))).with_suffix(ENDING)


def entry_of(use: Any, own: str | None = None) -> Golden:
    """What is recorded of a reward: in its own file, or in one that the user names.

    Raises:
        ConfigError: the file cannot be read; the user's has nothing of this scorer with these settings.
    """
    name, settings = type(use).__name__, settings_of(use)
    file = file_of(use) if own is None else place(own, what="golden")
    if own is None and not file.is_file():
        return Golden(name, settings, NONE)
    found = [entry for entry in read(file) if entry.scorer == name]
    for entry in found:
        if _same(entry.settings, settings):
            return entry
    if own is None:
        return Golden(name, settings, NONE)
    near = min(found, key=lambda entry: len(_different(entry.settings, settings)), default=None)
    told = "nothing of it" if near is None else f"other settings: {', '.join(_different(near.settings, settings))}"
    raise ConfigError(
        f"golden: {file} holds {told} for {name}; record it with `grpo-mm golden CONFIG --record {file}`."
    )


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _different(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    names = sorted({*recorded, *here})
    return [
        f"{name} = {shown(recorded.get(name), 60)}, here {shown(here.get(name), 60)}"
        for name in names
        if not _same(recorded.get(name), here.get(name))
    ]


def read(file: Path) -> list[Golden]:
    """The entries of a file; raises ConfigError for one that cannot be read."""
    try:
        rows = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError("wanted a list of entries")
        return [_entry(row) for row in rows]
    except (OSError, UnicodeDecodeError, BadJson, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ConfigError(f"golden: {file} cannot be read as golden scores ({reason(error, 150)}).") from error


def _entry(row: Mapping[str, Any]) -> Golden:
    unknown = sorted(set(row) - {one.name for one in fields(Golden)})
    if unknown:
        raise ValueError(f"unknown: {shown(unknown)}")
    entry = Golden(**row)
    numbers = [*entry.scores, entry.tolerance, *(value for values in entry.faults.values() for value in values)]
    three = [entry.scores, *entry.faults.values()] if not entry.unverified else []
    if not all(type(one) in (int, float) and math.isfinite(one) for one in numbers) or any(len(v) != 3 for v in three):
        raise ValueError("wanted three scores, and three for each fault")
    if (
        not isinstance(entry.scorer, str)
        or not isinstance(entry.settings, Mapping)
        or not isinstance(entry.unverified, str)
    ):
        raise TypeError("wanted the scorer's name, its settings, and why it is unverified")
    if not entry.unverified and entry.tolerance <= 0:
        raise ValueError("wanted a tolerance above 0")
    return entry


def write(file: Path, entries: Sequence[Golden]) -> None:
    """Puts entries into a file, each in the place of one with the same scorer and settings; raises ConfigError as `read`."""
    kept = read(file) if file.is_file() else []
    for entry in entries:
        kept = [one for one in kept if one.scorer != entry.scorer or not _same(one.settings, entry.settings)]
        kept.append(entry)
    rows = [
        {one.name: getattr(entry, one.name) for one in fields(Golden) if getattr(entry, one.name)} for entry in kept
    ]
    try:
        file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"golden: {plain(str(file))} cannot be written ({reason(error)}).") from error
