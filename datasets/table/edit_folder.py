"""Folders of edits without a list: pictures before in one folder, those after in another, texts beside them or in a third, by one stem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_mm.errors import ConfigError

FOLDERS = {
    "source_image": ("source", "sources", "src", "input", "inputs", "before", "original"),
    "edited_image": ("target", "targets", "tgt", "output", "outputs", "after", "edited"),
    "instruction": ("instruction", "instructions", "prompt", "prompts", "text", "texts", "caption", "captions"),
}
"""What a folder holds → how it is called."""


def edit_rows(
    folder: Path, base: Path, files: Sequence[Path]
) -> tuple[tuple[str, ...], Iterator[tuple[str, Mapping[str, Any]]]] | None:
    """(the columns, ("…/source/a.png", row)), names relative to `folder`; None where `base` has no two of such folders.

    Args:
        files: the pictures below `base`.

    Raises:
        ConfigError: a picture before without a text, or one after without one before.
    """
    there = {path.name.lower(): path for path in base.iterdir() if path.is_dir()}
    own = {what: next((there[name] for name in names if name in there), None) for what, names in FOLDERS.items()}
    before, after, texts = own["source_image"], own["edited_image"], own["instruction"]
    if before is None or (after is None and texts is None):
        return None
    pictures = {
        place: {_stem(path, place): path for path in files if path.is_relative_to(place)}
        for place in (before, after)
        if place
    }
    columns = ("source_image", "instruction", *(["edited_image"] if after else []))
    if alone := sorted(set(pictures.get(after, {})) - set(pictures[before])):  # type: ignore[call-overload]
        raise ConfigError(f"{after}/{alone[0]} has no picture of that name in {before}, which it would be the edit of.")
    return columns, _rows(folder, before, after, texts, pictures)


def _rows(
    folder: Path, before: Path, after: Path | None, texts: Path | None, pictures: Mapping[Path, Mapping[str, Path]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for stem, path in pictures[before].items():
        places = [place / f"{stem}.txt" for place in (texts, before, after) if place is not None]
        text = next((place for place in places if place.is_file()), None)
        if text is None:
            raise ConfigError(f"{path} has no instruction: there is no {' and no '.join(map(str, places))}.")
        row: dict[str, Any] = {
            "source_image": str(path.relative_to(folder)),
            "instruction": text.read_text(encoding="utf-8-sig", errors="strict").strip(),
        }
        if after is not None and stem in pictures[after]:
            row["edited_image"] = str(pictures[after][stem].relative_to(folder))
        yield str(path), row


def _stem(path: Path, place: Path) -> str:
    return str(path.relative_to(place).with_suffix(""))
