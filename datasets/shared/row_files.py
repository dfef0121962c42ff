"""Files of rows: text, tables and JSON, read one way for all readers, and refused with file and line where they are broken."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from grpo_mm.datasets.shared.columns import noted
from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, parse_json_at, plain, reason, shown

BOM = "\ufeff"
LONGEST_FIELD = 2**28
"""Characters of a field of a table; Python's own limit is 131,072, which is less than an encoded picture has."""
NO_TEXT = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)"),
    (b"PAR1", "a parquet file"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself (git lfs pull)"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)
"""First bytes, in lower case, of files that are not the text that their name promises."""
PIECE = 2**20
"""Characters of a JSON list that are read at once."""


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line 3", row) for each row that is not blank; the row of a .txt file is {"prompt": line}.

    Lines end at line feeds and carriage returns alone, never inside of a value. A byte order mark at the start of a line is
    no part of it, as files that were put together have them in the middle.

    Raises:
        ConfigError: broken JSON, a row that is no object, a table row with too many or too few columns, a column or key
            that stands twice, a NUL character, a file that is not UTF-8.
    """
    for where, row in _rows(path):
        yield where, noted(row, where)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    suffix = _suffix(path)
    if suffix == ".json":
        yield from _json_list(path)
        return
    with _opened(path, newline="" if suffix == ".csv" else None) as file:
        lines = _lines(path, file)
        if suffix == ".txt":
            yield from ((where, {"prompt": line}) for where, line in lines if line.strip())
        elif suffix == ".jsonl":
            yield from ((where, _as_row(_parsed(line, where), where)) for where, line in lines if line.strip())
        else:
            yield from _table(path, (line for _, line in lines), quoted=suffix == ".csv")


def read_lines(path: str) -> Iterator[tuple[str, str]]:
    """("file, line 3", line without its end) for each line that is not blank; raises ConfigError as `read_rows`."""
    with _opened(path, newline=None) as file:
        yield from ((where, line.rstrip("\n")) for where, line in _lines(path, file) if line.strip())


def read_values(path: str) -> Iterator[tuple[str, Any]]:
    """("file, line 3", value) for each line of JSON, whatever it is; raises ConfigError as `read_rows`."""
    yield from ((where, _parsed(line, where)) for where, line in read_lines(path))


def read_json(path: str) -> Any:
    """The value of a file; raises ConfigError as `read_rows`, and for a file that holds nothing."""
    with _opened(path, newline=None) as file:
        text = "".join(line for _, line in _lines(path, file))
    if not text.strip():
        raise ConfigError(f"{path}: there is nothing in this file.")
    return _parsed(text, path, whole=True)


def check_file(path: str, suffixes: tuple[str, ...]) -> None:
    """Raises ConfigError if there is no such file, or its suffix is another."""
    try:
        found = Path(path).is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise ConfigError(f"{shown(path)}: no such file ({reason(error)}).") from error
    if not found:
        raise ConfigError(f"{plain(path)}: no such file (looked in {Path(path).absolute().parent}).")
    if _suffix(path) not in suffixes:
        raise ConfigError(f"{path}: unknown suffix {Path(path).suffix!r}, wanted one of {', '.join(suffixes)}.")


def _suffix(path: str) -> str:
    """In lower case; .ndjson is .jsonl."""
    suffix = Path(path).suffix.lower()
    return ".jsonl" if suffix == ".ndjson" else suffix


def _opened(path: str, *, newline: str | None) -> IO[str]:
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        for start, name in NO_TEXT:
            if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(start) or head.startswith(start):
                raise ConfigError(f"{path} is {name}; wanted a text in UTF-8.")
        return open(path, encoding="utf-8-sig", newline=newline)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{plain(path)}: cannot be read: {reason(error)}.") from error


def _lines(path: str, file: IO[str]) -> Iterator[tuple[str, str]]:
    """("file, line 1", line with its end)."""
    number = 0
    try:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if "\0" in line:
                raise ConfigError(f"{where}: it holds a NUL character; is this a text in UTF-8?")
            yield where, line.removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: cannot be read as {Path(path).suffix} in UTF-8: line {_line_of(path)}: {error.reason}."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read after line {number}: {reason(error)}.") from error


def _line_of(path: str) -> str:
    """The first line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return str(number)
    return "?"


def _parsed(text: str, where: str, *, whole: bool = False) -> Any:
    try:
        return parse_json(text)
    except BadJson as error:
        place = "" if not whole else _place(text) if error.line is None else f", line {error.line}"
        raise ConfigError(f"{where}{place}: {error.reason}.") from error


def _place(text: str) -> str:
    """ ", entry 3": the first entry of a list or an object that cannot be read by itself; "" if it is none of them."""
    decoder, start = json.JSONDecoder(), len(text) - len(text.lstrip())
    if text[start : start + 1] not in ("[", "{"):
        return ""
    place, number, name = start + 1, 0, None
    while True:
        while text[place : place + 1] in (*" \t\r\n,:",):
            place += 1
        if text[place : place + 1] in ("]", "}", ""):
            return ""
        if text[start] == "{" and name is None:
            name, place = decoder.raw_decode(text, place)
            continue
        here = f", entry {number}" if name is None else f", {shown(name)[1:-1]}"
        try:
            end = decoder.raw_decode(text, place)[1]
            parse_json(text[place:end])
        except (ValueError, RecursionError):
            return here
        place, number, name = end, number + 1, None


def _json_list(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entry by entry, so that a large file is never in memory as a whole. Where something is odd, the file is read again, all of it,
    to tell what and where."""
    number = 0
    try:
        for number, row in enumerate(_entries(path), 1):
            yield f"{path}, entry {number - 1}", row
        return
    except _Odd:
        pass
    with _opened(path, newline=None) as file:
        text = "".join(line for _, line in _lines(path, file))
    if _is_lines(text):
        raise ConfigError(f"{path}: it holds one object a line, as .jsonl does. Rename it to {Path(path).stem}.jsonl.")
    rows = _parsed(text, path, whole=True) if text.strip() else []
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: found a JSON {type(rows).__name__}, wanted a list of objects or strings.")
    for place, row in enumerate(rows[number:], number):
        where = f"{path}, entry {place}"
        yield where, _as_row(row, where)


class _Odd(Exception):
    """Not plainly a list of objects and strings."""


def _entries(path: str) -> Iterator[dict[str, Any]]:
    """The entries of a JSON list, of which a part at a time is in memory; raises _Odd."""
    with _opened(path, newline=None) as file:
        text, at, is_first = "", 0, True

        def next_sign() -> str:
            """The next character that is not blank; "" at the end of the file."""
            nonlocal text, at
            while True:
                while at < len(text) and text[at] in " \t\r\n":
                    at += 1
                if at < len(text):
                    return text[at]
                text, at = _read(file, PIECE), 0
                if not text:
                    return ""

        if next_sign() != "[":
            raise _Odd
        at += 1
        while (sign := next_sign()) != "]":
            if not is_first:
                if sign != ",":
                    raise _Odd
                at += 1
                sign = next_sign()
            if sign not in ("{", '"'):
                raise _Odd
            is_first = False
            while True:
                try:
                    value, end = parse_json_at(text, at)
                    break
                except BadJson:
                    more = _read(file, max(PIECE, len(text) - at))
                    if not more:
                        raise _Odd from None
                    text, at = text[at:] + more, 0
            at = end
            yield {"prompt": value} if isinstance(value, str) else value
        at += 1
        if next_sign():
            raise _Odd


def _read(file: IO[str], size: int) -> str:
    try:
        return file.read(size)
    except (OSError, UnicodeDecodeError):
        raise _Odd from None


def _is_lines(text: str) -> bool:
    """Whether the first two lines of a text are an object each."""
    first, _, rest = text.lstrip().partition("\n")
    second = rest.lstrip().partition("\n")[0]
    try:
        return all(isinstance(parse_json(line), dict) for line in (first, second))
    except BadJson:
        return False


def _as_row(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        whole = " A file that is one list is called .json." if isinstance(value, list) else ""
        raise ConfigError(f"{where}: found {shown(value)}, wanted an object or a string.{whole}")
    return value


def _table(path: str, lines: Iterator[str], *, quoted: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    settings: dict[str, Any] = {"strict": True} if quoted else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    csv.field_size_limit(max(LONGEST_FIELD, csv.field_size_limit()))
    reader = csv.DictReader(lines, **settings)
    try:
        check_columns(reader.fieldnames or (), f"{path}, line 1")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                found = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None, ()))
                raise ConfigError(
                    f"{where}: found {found} columns, the header has {len(reader.fieldnames or ())}. "
                    "A .csv quotes a field that contains commas or line breaks; a .tsv has no quoting."
                )
            yield where, row
    except csv.Error as error:
        raise ConfigError(
            f"{path}, line {reader.line_num}: cannot be read as {Path(path).suffix}: {reason(error)}."
        ) from error


def check_columns(names: Any, where: str) -> None:
    """Raises ConfigError where a table names a column twice: which of the two is meant nobody can know."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{where}: the column {shown(name)} stands twice; name each column once.")
        seen.add(name)
