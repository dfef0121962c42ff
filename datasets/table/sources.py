"""Where rows come from: a file, a folder, or a Hugging Face data set, opened one way."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.hub import data_set_split
from grpo_mm.datasets.shared.row_files import check_columns, read_json, read_rows
from grpo_mm.datasets.table.arrow_rows import arrow_file, arrow_rows, column_features
from grpo_mm.datasets.table.media_folder import METADATA, has_media, media_rows
from grpo_mm.errors import ConfigError
from grpo_mm.outside import plain, reason, shown

TEXTS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
TABLES = (".parquet", ".arrow")
SUFFIXES = TEXTS + TABLES
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

Rows = Iterator[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Source:
    """Example: Source("data/train.json", "train", "data", rows): what "data/train.json" holds, with media in "data"."""

    name: str
    """For messages."""
    stem: str
    """What ids begin with."""
    folder: str
    """What names of media are relative to."""
    rows: Callable[[], Rows]
    """("file, line 3", row) for each row."""
    columns: tuple[str, ...] | None = None
    """None: rows may differ, as in JSON."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Column → "image", "video" or "audio", as far as the source declares it."""


def open_source(path: str, *, split: str | None, config: str | None = None, revision: str | None = None) -> Source:
    """What `path` names: a file of `SUFFIXES`, a folder, or "org/name" of the hub. `split` is of folders and hubs, null: train.

    Raises:
        ConfigError: it is nothing of that kind, or cannot be read.
    """
    check_source(path)
    place = Path(path)
    if place.is_file():
        return _file(path)
    if not place.is_dir():
        return _data_set(path, split, config, revision)
    if any((place / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return _data_set(path, split, config, revision)
    if has_media(place):
        names, rows = media_rows(place, split)
        return Source(path, place.resolve().name, path, rows, names)
    return _data_set(path, split, config, revision)


def check_source(path: str) -> None:
    """Raises ConfigError if a path names nothing that can be read; asks nobody on the network."""
    try:
        place = Path(path)
        is_file, is_folder = place.is_file(), place.is_dir()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown(path)}: no such file ({reason(error)}).") from error
    if is_file:
        if place.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{plain(path)}: unknown suffix {place.suffix!r}, wanted one of {', '.join(SUFFIXES)}.")
        return
    if is_folder:
        _check_folder(place)
        return
    looks_local = path.startswith((".", "/", "~")) or place.suffix.lower() in SUFFIXES or path.count("/") > 1
    looks_local = looks_local or ("/" in path and place.parent.is_dir())
    if looks_local or not _HUB_NAME.fullmatch(path):
        near = _near(place)
        raise ConfigError(
            f"{plain(path)}: no such file or folder (looked in {place.absolute().parent})."
            f"{f' Did you mean {plain(near)}?' if near else ''}"
        )


def _check_folder(folder: Path) -> None:
    if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", *METADATA)):
        return
    data = sorted(str(p.name) for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.suffix != ".txt")
    if data and has_media(folder):
        raise ConfigError(
            f"{folder} holds {', '.join(map(shown, data[:5]))} and pictures or videos: name the file in it whose rows are meant, such as "
            f"{folder / data[0]}."
        )
    if not data and not has_media(folder) and not any(p.suffix.lower() in SUFFIXES for p in folder.glob("*/*")):
        there = sorted(p.name for p in folder.iterdir())[:10]
        raise ConfigError(
            f"{folder}: a folder without rows ({', '.join(SUFFIXES)}), pictures or videos; it holds {', '.join(map(shown, there)) or 'nothing'}."
        )


def _near(place: Path) -> str | None:
    folder = place.parent
    names = [p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    found = difflib.get_close_matches(place.name, names, n=1)
    return str(folder / found[0]) if found else None


def _file(path: str) -> Source:
    place = Path(path)
    folder, suffix = str(place.parent), place.suffix.lower()
    if suffix in TABLES:
        schema, batches = arrow_file(path)
        check_columns(schema.names, path)
        features, labels = column_features(schema.metadata, schema)
        return Source(
            path, place.stem, folder, lambda: arrow_rows(batches(), path, labels), tuple(schema.names), features
        )
    if suffix == ".json" and (rows := _object_rows(path)) is not None:
        return Source(path, place.stem, folder, lambda: iter(rows))
    return Source(path, place.stem, folder, lambda: read_rows(path))


def _object_rows(path: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Of a .json that is no list: an object with one list of rows in it, or lines of objects. None if it is a list."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            head = file.read(4096).lstrip()
    except (OSError, UnicodeDecodeError):
        return None  # read_rows tells what is wrong
    if not head.startswith("{"):
        return None
    try:
        value = read_json(path)
    except ConfigError as error:
        if "Extra data" not in str(error):
            raise
        from grpo_mm.datasets.shared.row_files import read_values

        value = {"rows": [row for _, row in read_values(path)]}
    lists = {key: rows for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)}
    if len(lists) != 1:
        raise ConfigError(
            f"{path}: found a JSON object with the keys {', '.join(map(shown, list(value)[:10]))}; wanted a list of rows, or an object with "
            f"one list of rows in it (found {len(lists)})."
        )
    ((key, rows),) = lists.items()
    found = []
    for number, row in enumerate(rows):
        where = f"{path}, {key}, entry {number}" if key != "rows" else f"{path}, line {number + 1}"
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: found {shown(row)}, wanted an object.")
        found.append((where, row))
    return found


def _data_set(path: str, split: str | None, config: str | None, revision: str | None) -> Source:
    """Of the hub, of `save_to_disk`, or of a folder of data files; memory-mapped by Hugging Face's own package."""
    try:
        data = data_set_split(path, split or "train", config, revision)
        # As arrow tables: no picture is decoded, and what is memory-mapped stays so.
        tables = data.with_format("arrow")
        features, labels = column_features({b"huggingface": data.features.to_dict()}, data.features.arrow_schema)
        name = f"{path} [{split or 'train'}]"
    except ConfigError:
        raise
    except Exception as error:  # unknown name, configuration, split or revision; damaged files; no network
        here = "" if Path(path).exists() else " There is no file or folder of that name here either."
        raise ConfigError(f"{path} [{split or 'train'}]: it cannot be read: {reason(error)}.{here}") from error

    def batches() -> Iterator[Any]:
        for table in tables.iter(batch_size=256):
            yield from table.to_batches()

    folder = path if Path(path).is_dir() else "."
    return Source(
        name, Path(path).name, folder, lambda: arrow_rows(batches(), name, labels), tuple(data.column_names), features
    )
