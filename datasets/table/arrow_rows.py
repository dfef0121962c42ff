"""Rows of arrow tables, on disk as parquet or arrow files: what is encoded stays a view of the table, and is not copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from grpo_mm.datasets.shared.row_check import row_net
from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, reason

ROWS_AT_ONCE = 256
MEDIA_FEATURES = {"Image": "image", "Video": "video", "Audio": "audio"}


def arrow_file(path: str) -> tuple[Any, Callable[[], Iterator[Any]]]:
    """The schema of a .parquet or .arrow file, and what gives its record batches; an .arrow file is memory-mapped.

    Raises:
        ConfigError: it cannot be read as such.
    """
    try:
        if path.lower().endswith(".parquet"):
            from pyarrow.parquet import ParquetFile

            file = ParquetFile(path, memory_map=True)
            return file.schema_arrow, lambda: file.iter_batches(batch_size=ROWS_AT_ONCE)
        return _ipc(path)
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read as {path.rpartition('.')[2]}: {reason(error)}") from error


def _ipc(path: str) -> tuple[Any, Callable[[], Iterator[Any]]]:
    import pyarrow

    mapped = pyarrow.memory_map(path)
    try:  # as `save_to_disk` and the caches of Hugging Face write them
        with pyarrow.ipc.open_stream(mapped) as found:
            return found.schema, lambda: iter(pyarrow.ipc.open_stream(pyarrow.memory_map(path)))
    except pyarrow.ArrowInvalid:
        found = pyarrow.ipc.open_file(pyarrow.memory_map(path))
        return found.schema, lambda: (found.get_batch(number) for number in range(found.num_record_batches))


def column_features(metadata: Mapping[bytes, Any] | None, schema: Any) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(column → "image", "video" or "audio", column → names of its labels) as Hugging Face's features in the schema declare it."""
    declared = (metadata or {}).get(b"huggingface", {})
    if isinstance(declared, bytes):
        try:
            declared = parse_json(declared.decode())["info"]["features"]
        except (BadJson, UnicodeDecodeError, KeyError, TypeError):
            declared = {}
    media = {name: kind for name in schema.names if (kind := _medium(declared.get(name)))}
    labels = {
        name: found["names"]
        for name in schema.names
        if isinstance(found := declared.get(name), dict) and found.get("_type") == "ClassLabel"
    }
    return media, labels


def _medium(feature: Any) -> str | None:
    """Of a column that is media, or a list of media."""
    if isinstance(feature, list):
        return _medium(feature[0]) if feature else None
    if not isinstance(feature, Mapping):
        return None
    kind = feature.get("_type")
    return (
        MEDIA_FEATURES.get(kind) if kind not in ("Sequence", "List", "LargeList") else _medium(feature.get("feature"))
    )


def arrow_rows(
    batches: Iterable[Any], name: str, labels: Mapping[str, list[str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("name, row 3", row), counted from 0. Encoded bytes are pyarrow buffers, NaN is None, a label is its name."""
    number, given = 0, iter(batches)
    while True:
        where = f"{name}, row {number}"
        with row_net(where):
            batch = next(given, None)
        if batch is None:
            return
        with row_net(where):
            columns = {column: _values(batch.column(i)) for i, column in enumerate(batch.schema.names)}
        for place in range(batch.num_rows):
            row = {column: values[place] for column, values in columns.items()}
            for column, names in labels.items():
                label = row.get(column)
                if isinstance(label, int) and 0 <= label < len(names):
                    row[column] = names[label]
            yield f"{name}, row {number}", row
            number += 1


def _values(column: Any) -> list[Any]:
    if not _holds_bytes(column.type):
        return [_plain(value) for value in column.to_pylist()]
    return [_cell(scalar) for scalar in column]


def _holds_bytes(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _cell(scalar: Any) -> Any:
    import pyarrow

    if not scalar.is_valid:
        return None
    if isinstance(scalar, (pyarrow.BinaryScalar, pyarrow.LargeBinaryScalar)) and not isinstance(
        scalar, pyarrow.StringScalar
    ):
        return scalar.as_buffer()
    if isinstance(scalar, pyarrow.StructScalar):
        return {name: _cell(scalar[name]) for name in scalar}
    if isinstance(scalar, pyarrow.ListScalar):
        return [_cell(one) for one in scalar]
    return _plain(scalar.as_py())


def _plain(value: Any) -> Any:
    """None for NaN, with which pandas marks what is missing; dates and decimals as texts."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value if value is None or isinstance(value, (str, int, float, bool, bytes)) else str(value)
