"""A folder of pictures or videos as rows, with a metadata file, texts beside the files, or folders by label.

Source: the layout of ImageFolder and VideoFolder of Hugging Face's `datasets`; texts beside pictures are the habit of trainers
of text-to-image adapters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.row_files import read_rows
from grpo_mm.datasets.table.arrow_rows import arrow_file, arrow_rows
from grpo_mm.datasets.table.edit_folder import edit_rows
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval"),
    "validation": ("validation", "valid", "val", "dev"),
}
_NAMED = re.compile(r"(?:(.+)_)?file_names?")

Rows = Iterator[tuple[str, Mapping[str, Any]]]


def has_media(folder: Path) -> bool:
    return any(path.suffix.lower() in PICTURES + VIDEOS for path in folder.rglob("*"))


def media_rows(folder: Path, split: str | None) -> tuple[tuple[str, ...] | None, Callable[[], Rows]]:
    """The columns, if all rows have the same, and what gives ("folder/metadata.csv, line 3", row).

    Media are named relative to `folder`. With metadata files, here or in folders below, their rows are taken: "file_name" is
    the picture ("image") or video ("video"), "x_file_name" the column "x", "file_names" a list. Folders source and target (and
    instruction) are edits (`edit_rows`). Else each file is a row: its name, "text" from the .txt of the same name, if any has one, and "label", the name of its folder, if there are several.

    Args:
        split: where the folder has folders such as train and test: only what is below that one (None: train). Without them a
            split is refused, as there is only one.

    Raises:
        ConfigError: there is no such split, or no media.
    """
    base = _split_folder(folder, split)
    kept = [
        path for path in sorted(base.rglob("*")) if not any(p.startswith(".") for p in path.relative_to(base).parts)
    ]
    listed = [path for path in kept if path.name in METADATA]
    if listed:
        return None, lambda: _listed(folder, listed)
    files = [path for path in kept if path.suffix.lower() in PICTURES + VIDEOS]
    if not files:
        raise ConfigError(f"{base}: no picture and no video.")
    edits = edit_rows(folder, base, files)
    if edits is not None:
        return edits[0], lambda: edit_rows(folder, base, files)[1]  # type: ignore[index]
    texts = {path for path in files if path.with_suffix(".txt").is_file()}
    labels = {path.parent.name for path in files}
    has_labels = len(labels) > 1 and len({len(path.parts) for path in files}) == 1 and not texts
    kinds = {_kind(path.name) for path in files}
    names = (*sorted(kinds), *(["text"] if texts else []), *(["label"] if has_labels else []))
    return names, lambda: _files(folder, files, texts, has_labels)


def _files(folder: Path, files: list[Path], texts: set[Path], has_labels: bool) -> Rows:
    for path in files:
        row: dict[str, Any] = {_kind(path.name): str(path.relative_to(folder))}
        if texts:
            if path not in texts:
                raise ConfigError(
                    f"{path} has no {path.with_suffix('.txt').name} beside it; {len(texts)} other files have."
                )
            row["text"] = path.with_suffix(".txt").read_text(encoding="utf-8-sig", errors="strict").strip()
        if has_labels:
            row["label"] = path.parent.name
        yield str(path), row


def _listed(folder: Path, listed: list[Path]) -> Rows:
    for file in listed:
        if file.suffix == ".parquet":
            rows: Any = arrow_rows(arrow_file(str(file))[1](), str(file), {})
        else:
            rows = read_rows(str(file))
        for where, row in rows:
            yield where, _with_media(dict(row), file.parent.relative_to(folder), where)


def _with_media(row: dict[str, Any], below: Path, where: str) -> dict[str, Any]:
    named = {column: found[1] for column in row if (found := _NAMED.fullmatch(column))}
    if not named:
        raise ConfigError(
            f"{where}: no field 'file_name'; found {', '.join(map(shown, row))}. The metadata of a folder name the file of each row in "
            "file_name, x_file_name or file_names."
        )
    made: dict[str, Any] = {}
    for column, value in row.items():
        if column not in named:
            made[column] = value
            continue
        values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
        if not all(isinstance(one, str) and one.strip() for one in values):
            raise ConfigError(f"{where}: {column!r} is {shown(value)}, wanted the name of a file.")
        kind = _kind(values[0]) if values else "image"
        name = named[column] or (f"{kind}s" if column == "file_names" else kind)
        made[name] = (
            [str(below / one) for one in values]
            if isinstance(value, list)
            else str(below / values[0])
            if values
            else None
        )
    return made


def _kind(name: str) -> str:
    return "video" if Path(name).suffix.lower() in VIDEOS else "image"


def _split_folder(folder: Path, split: str | None) -> Path:
    there = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    known = {name for names in SPLITS.values() for name in names}
    if not known & set(there):
        if split not in (None, "train"):
            raise ConfigError(f"{folder}: no split {split!r}; it has no folders train and test.")
        return folder
    wanted = split or "train"
    names = next((names for names in SPLITS.values() if wanted in names), (wanted,))
    found = next((there[name] for name in names if name in there), None)
    if found is None:
        raise ConfigError(f"{folder}: no split {wanted!r}; found {', '.join(sorted(known & set(there)))}.")
    return found
