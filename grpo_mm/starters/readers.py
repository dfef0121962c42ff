"""How a starter's rows are written and read: the one place where the form of the data is decided."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from grpo_mm import registry

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


def _conversation(row: Row) -> Row:
    content = f"{row['query']}<video>Answer directly."
    span = [row["start"], row["end"]]
    video = row["video"].rpartition("/")[2]
    return {"messages": [{"role": "user", "content": content}], "videos": [video], "spans": [span], "duration": 9.0}


def _in_its_folder(row: Row) -> Row:
    return row | {"image": row["image"].rpartition("/")[2]}


_IMAGE = ("txt", _as_it_is, "{{kind: file, path: {path}}}")
_TABLE = {
    "vqa": ("jsonl", _as_it_is, '{{kind: table, path: {path}, template: "{{query}}<image>Think first."}}'),
    "video": (
        "csv", _as_it_is,
        '{{kind: table, path: {path}, question: query, span: [start, end], template: "{{query}}<video>Answer directly."}}',
    ),
    "image": _IMAGE,
}  # fmt: skip
_WITHOUT_TABLE = {
    "vqa": (
        "jsonl", _in_its_folder,
        '{{kind: grounded_cot, path: {path}, folder: pictures, other_type: multiple choice, template: "{{query}}<image>Think first."}}',
    ),
    "video": ("jsonl", _conversation, "{{kind: messages, path: {path}, folder: clips}}"),
    "image": _IMAGE,
}  # fmt: skip
_FORMS = _TABLE if any(entry.kind == "table" for entry in registry.entries("prompts")) else _WITHOUT_TABLE
