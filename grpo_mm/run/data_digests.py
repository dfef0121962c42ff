"""What rows bring in that no setting names, as digests: the files of their pictures and videos, and rows that come from no file.

A file counts by its content until `WHOLE_BYTES` of a source have been read, then by its size; of those after the first `MOST_FILES`
all sizes have one digest together. Rows of a data set of the hub, or of a reader of one's own, count as they were read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from grpo_mm.config.sources import GONE, MOST_FILES, WHOLE_BYTES, Digests
from grpo_mm.types import Prompt

AS_READ = "the rows as they are read"


def with_rows(sources: Mapping[str, Digests], rows: Mapping[str, Sequence[Prompt]]) -> dict[str, Digests]:
    """The digests of `sources_of` with those of what was read.

    Args:
        rows: dotted key of a reader ("prompts.mine.use") → its prompts.
    """
    data = {key: dict(digests) for key, digests in sources.get("data", {}).items()}
    for key, prompts in rows.items():
        found = _of_files(prompts)
        if not any(other == key or other.startswith(f"{key}.") for other in data):
            found |= {AS_READ: _of_rows(prompts)}
        if found:
            data.setdefault(key, {}).update(found)
    return {**sources, "data": data}


def _of_files(prompts: Sequence[Prompt]) -> dict[str, str]:
    paths = list(dict.fromkeys(path for prompt in prompts for path in _paths((prompt.media, prompt.target))))
    found, left = {}, WHOLE_BYTES
    for path in paths[:MOST_FILES]:
        size = _size(path)
        found[path] = GONE if size is None else _content(path) if size <= left else f"{size} bytes"
        left -= size or 0
    if further := paths[MOST_FILES:]:
        sizes = "".join(f"{path}\0{_size(path)}\n" for path in further)
        found[f"{len(further)} further pictures or videos"] = hashlib.sha256(sizes.encode(errors="replace")).hexdigest()
    return found


def _paths(value: Any) -> Iterator[str]:
    """Of files that stand in media or targets, in order."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _paths(part)
    elif hasattr(value, "alter"):  # an altered picture or clip
        yield from _paths(value.item)
    elif not hasattr(value, "getexif") and isinstance(path := getattr(value, "path", None), str):
        yield path


def _size(path: str) -> int | None:
    try:
        return sum(map(os.path.getsize, _within(path))) if os.path.isdir(path) else os.path.getsize(path)
    except (OSError, ValueError):
        return None


def _content(path: str) -> str:
    content = hashlib.sha256()
    try:
        for file in _within(path) if os.path.isdir(path) else [path]:  # a folder of frames
            with open(file, "rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError:
        return GONE
    return content.hexdigest()


def _within(folder: str) -> list[str]:
    return sorted(os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)


def _of_rows(prompts: Sequence[Prompt]) -> str:
    content, left = hashlib.sha256(), WHOLE_BYTES
    for prompt in prompts:
        for piece in _pieces([getattr(prompt, field.name) for field in fields(prompt) if field.name != "source"]):
            size = getattr(piece, "size", None) if not isinstance(piece, bytes) else len(piece)
            whole = size is None or size <= left
            content.update(_bytes(piece) if whole else f"{size} bytes".encode())
            left -= size or 0
            content.update(b"\0")
    return content.hexdigest()


def _pieces(value: Any) -> Iterator[Any]:
    """bytes, and buffers whose bytes are not there yet; the same for the same values."""
    if value is None or isinstance(value, (str, int, float, bool)):
        yield f"{type(value).__name__} {value!r}".encode(errors="surrogatepass")
    elif isinstance(value, bytes) or hasattr(value, "to_pybytes"):
        yield value
    elif isinstance(value, Mapping):
        yield from _each(f"{len(value)} named", (part for name in value for part in (str(name), value[name])))
    elif isinstance(value, (list, tuple)):
        yield from _each(f"{len(value)} of", value)
    elif isinstance(value, (set, frozenset)):
        yield from _each(f"{len(value)} in", sorted(value, key=repr))
    elif hasattr(value, "getexif"):  # a picture of PIL
        yield from (f"{value.mode} {value.size}".encode(), value.tobytes())
    elif hasattr(value, "numpy") or hasattr(value, "__array__"):
        import numpy as np

        array = np.ascontiguousarray(value)
        yield from (f"{array.dtype} {array.shape}".encode(), array.tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _each(type(value).__name__, _settings(value))
    else:
        yield type(value).__name__.encode()


def _settings(value: Any) -> Iterator[Any]:
    """Of a picture or video: not where it stands (`name`), nor in which folder."""
    for field in fields(value):
        part = getattr(value, field.name)
        if field.name != "name":
            yield os.path.basename(part) if field.name == "path" and isinstance(part, str) else part


def _each(head: str, parts: Iterable[Any]) -> Iterator[Any]:
    yield head.encode()
    for part in parts:
        yield from _pieces(part)


def _bytes(piece: Any) -> bytes:
    return piece if isinstance(piece, bytes) else piece.to_pybytes()
