"""No column of a row goes unread without a word, whatever the reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reader_rows import ANSWERS_READER, EXAMPLES, Example

EXTRA = "zzz_mine"


def with_one_more(file: Path) -> bool:
    """Adds a column to the rows of a file, if it has rows by name."""
    text = file.read_text()
    if file.suffix in (".csv", ".tsv"):
        split = "," if file.suffix == ".csv" else "\t"
        head, *rows = text.strip().splitlines()
        file.write_text("\n".join([f"{head}{split}{EXTRA}", *(f"{row}{split}note" for row in rows)]) + "\n")
        return True
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        found = [row | {EXTRA: "note"} if isinstance(row, dict) else row for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in found))
        return any(isinstance(row, dict) for row in rows)
    rows = json.loads(text) if file.suffix == ".json" else None
    if isinstance(rows, dict) and isinstance(rows.get("val"), list):
        rows["val"] = [row | {EXTRA: "note"} for row in rows["val"]]
    elif isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        rows = [row | {EXTRA: "note"} for row in rows]
    else:
        return False
    file.write_text(json.dumps(rows))
    return True


OUTPUTS_OF_BLINK = Example(ANSWERS_READER, {"o.json": json.dumps({"val": [{"idx": "val_Jigsaw_1", "answer": "(A)"}], "test": []})})  # fmt: skip


@pytest.mark.parametrize("name", [*EXAMPLES, "answers of blink"])
def test_one_more_column_is_named(name, tmp_path, caplog):
    example = EXAMPLES.get(name, OUTPUTS_OF_BLINK)
    if not with_one_more(example.write(tmp_path)):
        pytest.skip("its file has no rows by name")
    with caplog.at_level("INFO"):
        example.load(tmp_path)
    assert EXTRA in caplog.text


def test_most_readers_have_such_files(tmp_path):
    found = []
    for number, example in enumerate(EXAMPLES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(with_one_more(example.write(folder)))
    assert sum(found) > 30
