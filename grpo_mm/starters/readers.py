"""How a starter's rows are written and read: the one place where the form of the data is decided."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def data_file(kind: str, split: str) -> str:
    """ "train.jsonl" and the like."""
    return f"{split}.{_FORMS[kind][0]}"


def written(kind: str, rows: Sequence[Row]) -> str:
    """The rows as the text of such a file."""
    ending, as_row, _ = _FORMS[kind]
    rows = [as_row(row) for row in rows]
    if ending == "txt":
        return "".join(f"{row['prompt']}\n" for row in rows)
    if ending == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def reader(kind: str, split: str) -> str:
    """The reader of such a file as YAML, such as {kind: file, path: train.txt}."""
    return _FORMS[kind][2].format(path=data_file(kind, split))


def _as_it_is(row: Row) -> Row:
    return row


_IMAGE = ("txt", _as_it_is, "{{kind: file, path: {path}}}")
_FORMS = {
    "vqa": ("jsonl", _as_it_is, '{{kind: table, path: {path}, template: "{{query}}<image>Think first."}}'),
    "video": (
        "csv", _as_it_is,
        '{{kind: table, path: {path}, question: query, span: [start, end], template: "{{query}}<video>Answer directly."}}',
    ),
    "image": _IMAGE,
}  # fmt: skip
