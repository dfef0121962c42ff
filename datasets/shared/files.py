"""Prompts from a text, table or JSON file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.types import Prompt

TEXT_FIELDS = ("prompt", "text", "caption", "prompt_en")
"""Where the prompt is looked for, in this order and whatever the case, if `text_field` is not given."""
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".json")


@dataclass
class PromptFile:
    """Prompts from one file; its suffix says how it is read.

    .txt: one prompt a line, blank lines skipped.  .csv: comma separated with a header, quoted as spreadsheets do.
    .tsv: tab separated with a header and no quoting at all, as the media type text/tab-separated-values has it
    (PartiPrompts contains stray double quotes).  .jsonl: an object or a string a line.  .json: a list of them.

    Ids are "<file stem>/<row number>", counted from 0 over the prompts, or "<file stem>/<value of id_field>".
    All other fields of a row become `target`, a dict; None if there are no others.
    """

    path: str
    text_field: str | None = None
    """None: the first of prompt, text, caption, prompt_en."""
    id_field: str | None = None
    limit: int | None = None
    """Only the first rows; None for all."""

    def __post_init__(self) -> None:
        check_limit(self.limit, self.path)

    def check(self) -> None:
        """Raises ConfigError if the file is not there or its suffix is unknown."""
        check_file(self.path, SUFFIXES)

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a missing, empty or broken file, a field that is not there, or a repeated id."""
        self.check()
        stem, seen, prompts = Path(self.path).stem, {}, []
        for where, row in read_rows(self.path):
            text_field = self.text_field or find_text_field(row, where)
            text = take_field(row, text_field, where)
            if not isinstance(text, str) or not text.strip():
                raise ConfigError(f"{where}: {text_field!r} is {text!r}, wanted a text.")
            name = len(prompts) if self.id_field is None else take_field(row, self.id_field, where)
            if name in seen:
                raise ConfigError(f"{where}: {self.id_field} = {name!r} was used at {seen[name]}; ids are unique.")
            seen[name] = where
            target = {key: value for key, value in row.items() if key not in (text_field, self.id_field)}
            prompts.append(Prompt(id=f"{stem}/{name}", text=text.strip(), target=target or None))
            if len(prompts) == self.limit:
                break
        if not prompts:
            raise ConfigError(f"{self.path}: there is no prompt in this file.")
        return prompts


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line 3", row) for each row that is not blank; the row of a .txt file is {"prompt": line}.

    Raises:
        ConfigError: broken JSON, a row that is no object, a table row with too many or too few columns, not UTF-8.
    """
    suffix = Path(path).suffix
    with open(path, encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as file:
        try:
            if suffix == ".txt":
                rows = ((f"{path}, line {n}", {"prompt": line}) for n, line in enumerate(file, 1) if line.strip())
            elif suffix == ".jsonl":
                rows = (_json_line(path, n, line) for n, line in enumerate(file, 1) if line.strip())
            elif suffix == ".json":
                rows = _json_list(path, file.read())
            else:
                rows = _table(path, csv.DictReader(file) if suffix == ".csv" else _tsv(file))
            yield from rows
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path}: cannot be read as {suffix} in UTF-8: {error}.") from error


def find_text_field(row: dict[str, Any], where: str) -> str:
    """The name of the field that holds the prompt."""
    by_lower = {key.lower(): key for key in reversed(row)}
    for name in TEXT_FIELDS:
        if name in by_lower:
            return by_lower[name]
    raise ConfigError(
        f"{where}: found the fields {', '.join(map(repr, row))}; none is called {', '.join(TEXT_FIELDS)}. "
        "Set text_field to the one that holds the prompt."
    )


def take_field(row: dict[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise ConfigError(f"{where}: no field {name!r}; found {', '.join(map(repr, row))}.")
    return row[name]


def check_file(path: str, suffixes: tuple[str, ...]) -> None:
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file (looked in {Path(path).absolute().parent}).")
    if Path(path).suffix not in suffixes:
        raise ConfigError(f"{path}: unknown suffix {Path(path).suffix!r}, wanted one of {', '.join(suffixes)}.")


def check_limit(limit: int | None, path: str) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"{path}: limit = {limit}, wanted at least 1, or null for all rows.")


def _json_line(path: str, number: int, line: str) -> tuple[str, dict[str, Any]]:
    where = f"{path}, line {number}"
    try:
        return where, _as_row(json.loads(line), where)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error.msg} at column {error.colno}.") from error


def _json_list(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}.") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: found a JSON {type(rows).__name__}, wanted a list of objects or strings.")
    for number, row in enumerate(rows):
        where = f"{path}, entry {number}"
        yield where, _as_row(row, where)


def _as_row(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: found {value!r}, wanted an object or a string.")
    return value


def _tsv(file: Iterator[str]) -> csv.DictReader:
    return csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _table(path: str, reader: csv.DictReader) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            found = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None, ()))
            raise ConfigError(
                f"{where}: found {found} columns, the header has {len(reader.fieldnames or ())}. "
                "A .csv quotes a field that contains commas or line breaks; a .tsv has no quoting."
            )
        yield where, row
