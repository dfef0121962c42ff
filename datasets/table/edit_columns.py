"""Columns of data of edits: the picture before, further references, the picture after; by their usual names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.datasets.shared.media_fields import STILL, is_empty
from grpo_mm.datasets.shared.usual_names import EDITS, folded

MAY_BE_WORDS = frozenset(
    [
        "source",
        "original",
        "before",
        "input",
        "target",
        "output",
        "after",
        "edited",
        "result",
        "reference",
        "references",
        "mask",
    ]
)
"""Names under which others have texts: taken where the values are pictures."""


def take_edit(
    rows: Sequence[Mapping[str, Any]],
    free: dict[str, str],
    found: dict[str, tuple[str, ...]],
    named: Mapping[str, tuple[str, ...]],
    features: Mapping[str, str],
) -> None:
    """Puts the columns of an edit into `found`, out of `free` (folded name → column); nothing where no column is the picture before.

    The picture after and the mask are looked for beside a column `image` too, as many sets call the picture before.
    """
    for role in ("source_image", "reference_image", "edited_image", "mask"):
        if role in named or (role == "reference_image" and not {"source_image"} & {*named, *found}):
            continue
        if role in ("edited_image", "mask") and not (
            {"source_image", "image"} & {*named, *found} or {"image", "image_file"} & set(free)
        ):
            continue
        column = next(
            (free[name] for name in EDITS[role] if name in free and _holds_pictures(rows, free[name], features)), None
        )
        if column is not None:
            found[role] = (column,)
            del free[folded(column)]


def sizes_apart(free: dict[str, str], found: Mapping[str, tuple[str, ...]], features: Mapping[str, str]) -> list[str]:
    """Columns that hold the picture before once more, in its own size ("input_image_raw"): for rewards."""
    sources = {f"{folded(name)}_raw" for name in found.get("source_image", ())}
    return [name for fold, name in free.items() if fold in sources and features.get(name, "image") == "image"]


def _holds_pictures(rows: Sequence[Mapping[str, Any]], column: str, features: Mapping[str, str]) -> bool:
    if column in features:
        return features[column] == "image"
    values = [row[column] for row in rows if not is_empty(row.get(column))]
    return folded(column) not in MAY_BE_WORDS or (bool(values) and all(map(_is_picture, values)))


def _is_picture(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_picture, value))
    if isinstance(value, Mapping):
        return bool(value.get("bytes")) or _is_picture(value.get("path"))
    if isinstance(value, str):
        text = value.strip().lower()
        return text.endswith(STILL) or text.startswith("data:image/")
    return isinstance(value, bytes) or hasattr(value, "to_pybytes") or hasattr(value, "convert")
