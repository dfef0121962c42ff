"""The columns of a source's rows: which a reader asks for, which nobody reads, and what is said where one is missing."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from grpo_mm.datasets.shared.usual_names import same_meaning
from grpo_mm.errors import ConfigError
from grpo_mm.media_words import media_key
from grpo_mm.outside import plain, shown

log = logging.getLogger(__name__)


class Row(dict):
    """A row of a source that remembers which columns it was asked for; besides that a dict.

    To look at a row without asking for it (for a message, say), use `cells`.
    """

    __slots__ = ("columns", "missed")

    def __init__(self, values: Mapping[str, Any], columns: Columns) -> None:
        super().__init__(values)
        self.columns = columns
        self.missed: str | None = None
        """The column that was asked for last, if the row has none of that name."""

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.columns.read.add(name)
        return super().__contains__(name)

    def items(self) -> Any:
        self.columns.read.update(self)
        return super().items()

    def values(self) -> Any:
        self.columns.read.update(self)
        return super().values()

    def _note(self, name: str) -> None:
        self.columns.read.add(name)
        self.missed = None if super().__contains__(name) else name


class Columns:
    """What the rows of one source have, and what of it was asked for."""

    def __init__(self, source: str, leave: Collection[str] = ()) -> None:
        self.source, self.leave = source, frozenset(leave)
        self.found: dict[str, None] = {}
        self.read: set[Any] = set()
        self._media: dict[str, tuple[str, str]] = {}
        self._last: tuple[str, Row] | None = None

    def row(self, values: Mapping[str, Any], where: str) -> Row:
        self._look()
        row = Row(values, self)
        self.found.update(dict.fromkeys(values))
        self._last = where, row
        return row

    def settle(self) -> None:
        """After the last row: names in one line of the log what nobody asked for.

        Raises:
            ConfigError: that is a picture, a video or a sound.
        """
        self._look()
        self._last = None
        unread = [name for name in self.found if name not in self.read]
        for name in unread:
            if name in self._media and name not in self.leave:
                where, value = self._media[name]
                raise ConfigError(
                    f"{where}: the column {shown(name)} holds {value}, which looks like a picture, video or sound, and nobody would "
                    f"see it: this reader reads {shown_keys(n for n in self.found if n in self.read)}. Read the file with "
                    "{kind: table}, where every column can be named, or take the column out."
                )
        if unread:
            log.info("%s: columns that nobody reads: %s", plain(self.source, 400), shown_keys(unread))

    def _look(self) -> None:
        """Notes media in what the row before was not asked for."""
        if self._last is None:
            return
        where, row = self._last
        for name, value in cells(row):
            if name not in self.read and name not in self._media and media_key({name: value}):
                self._media[name] = where, shown(value, 60)


_READING: ContextVar[Columns | None] = ContextVar("reading", default=None)


@contextmanager
def reading(source: str, *, leave: Collection[str] = ()) -> Iterator[Columns]:
    """While a reader goes through `source`, its rows are `Row`s; at the end what nobody asked for is told, or refused.

    Args:
        leave: media of the published form that its reader leaves aside on purpose.
    """
    columns = Columns(source, leave)
    token = _READING.set(columns)
    try:
        yield columns
    finally:
        _READING.reset(token)
    columns.settle()


def noted(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A row as the reader that is at work gets it; rows of files that it has beside its own stay as they are."""
    columns = _READING.get()
    return columns.row(values, where) if columns is not None and where.startswith(columns.source) else values


def tell_kept(source: str, names: Iterable[str]) -> None:
    """Names in one line of the log the columns that only a reward may read."""
    kept = list(dict.fromkeys(names))
    if kept:
        log.info("%s: read by nobody but rewards that ask for them: %s", plain(source, 400), shown_keys(kept))


def cells(row: Mapping[str, Any]) -> Any:
    """(name, value) of all columns; the row was not asked for them."""
    return dict.items(row) if isinstance(row, dict) else row.items()


def no_field(name: str, columns: Iterable[str], where: str) -> ConfigError:
    """What is raised where a row has no column of that name."""
    return ConfigError(f"{where}: {about_missing(name, columns)}")


def about_missing(name: str, columns: Iterable[str]) -> str:
    """ "no field 'image'; found 'img', 'question'. Did you mean 'img'?" """
    names = list(columns)
    near = nearest(name, names)
    return f"no field {shown(name)}; found {shown_keys(names)}.{f' Did you mean {shown(near)}?' if near else ''}"


def nearest(name: str, columns: Iterable[str]) -> str | None:
    """The column that was most likely meant: of nearly the same letters, else of the same meaning."""
    by_lower = {str(column).lower(): column for column in columns}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.7)
    return by_lower[close[0]] if close else next((c for c in by_lower.values() if same_meaning(name, str(c))), None)


def shown_keys(row: Iterable[str], most: int = 30) -> str:
    """The keys of a row, for a message."""
    names = [shown(name, 60) for name in row]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
