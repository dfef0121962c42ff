"""Rows of question files with the pictures that lie in them: tables of text, JSON, and parquet files with encoded pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_mm.datasets.media.encoded_picture import EncodedPicture
from grpo_mm.datasets.media.media_files import ImageFile
from grpo_mm.datasets.media.pictures import PictureError, open_picture, picture_data, picture_format
from grpo_mm.datasets.media.pictures import picture_size as upright_size
from grpo_mm.datasets.media.written_media import file_name, from_base64, written_bytes
from grpo_mm.datasets.shared.columns import noted
from grpo_mm.datasets.shared.row_files import check_columns, check_file, read_rows
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import reason, shown

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
ROWS_AT_ONCE = 32
"""Of a parquet file: as many encoded pictures are in memory while a file is read."""


def check_rows(path: str, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Raises ConfigError for a missing file, an unknown suffix, or a folder without parquet files."""
    if Path(path).is_dir() and ".parquet" in suffixes:
        if not _shards(path):
            raise ConfigError(f"{path}: a folder without .parquet files; name a file, or the folder that holds them.")
        return
    check_file(path, suffixes)


def annotated_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line 3", row) for each row of a file, or of all parquet files of a folder in the order of their names.

    Raises:
        ConfigError: as `read_rows`, and for a parquet file that cannot be read.
    """
    if Path(path).is_dir():
        for shard in _shards(path):
            yield from _parquet_rows(shard)
    elif path.lower().endswith(".parquet"):
        yield from _parquet_rows(path)
    else:
        yield from read_rows(path)


def picture(value: Any, folder: str, where: str, *, unpack: str | None = None) -> Any:
    """A name becomes an `ImageFile` below `folder`; an encoded picture is decoded, or written to the folder `unpack` once.

    Args:
        value: a file name, a data URL (data:image/png;base64,…), a picture's bare base64, bytes, or {"bytes": …, "path": …} as
            Hugging Face datasets store pictures.

    Raises:
        ConfigError: something else, or bytes that are no picture.
    """
    if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
        held = value.get("bytes")
        if isinstance(held, str) and held:
            held = _of_base64(held, where)
        value = held or value.get("path")
    value = bytes(value) if isinstance(value, bytearray | memoryview) else value
    if not isinstance(value, bytes | str) or not value.strip():
        raise ConfigError(
            f"{where}: a picture is {shown(value)}, wanted a file name, a data URL, or the bytes of a picture file."
        )
    if isinstance(value, str):
        data = _of_base64(value, where, any_text=True)
        if data is None:
            return ImageFile(str(Path(folder) / file_name(value)))
        value = data
    try:
        if unpack is None:
            return open_picture(value)
        suffix = picture_format(value).lower()
        data = picture_data(value)
    except PictureError as error:
        raise ConfigError(f"{where}: {len(value)} bytes that are no picture: {error.reason}.") from error
    return ImageFile(written(data, Path(unpack), suffix))


def _of_base64(text: str, where: str, *, any_text: bool = False) -> bytes | None:
    """The bytes; with `any_text` None where the text is neither a data URL nor a picture in base64."""
    try:
        data = written_bytes(text)
        return from_base64(text) if data is None and not any_text else data
    except ValueError as error:
        raise ConfigError(f"{where}: {shown(text, 60)} is a picture that cannot be decoded: {error}.") from error


def picture_size(item: Any, where: str) -> tuple[int, int]:
    """(width, height) in pixels from a picture, or from the head of its file, as it is shown.

    Raises:
        ConfigError: the file is not there or is no picture.
    """
    if not isinstance(item, ImageFile | EncodedPicture):
        return item.size
    try:
        return item.size() if isinstance(item, EncodedPicture) else upright_size(item.path)
    except PictureError as error:
        raise ConfigError(
            f"{where}: the row has no width and height, and its picture cannot tell them: {error}."
        ) from error


def _shards(folder: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).glob("*.parquet"))


def _parquet_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            check_columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    where = f"{path}, row {number}"
                    yield where, noted(row, where)
                    number += 1
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read as parquet after {number} rows: {reason(error)}") from error


def written(data: bytes, folder: Path, suffix: str) -> str:
    """The path of a file with these bytes; its name is their hash, so that a second run finds it."""
    path = folder / f"{hashlib.sha256(data).hexdigest()[:32]}.{suffix}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{path.name}.{os.getpid()}"
        aside.write_bytes(data)
        os.replace(aside, path)
    return str(path)
