"""Answers of judges on disk: one file that several processes may share, bounded, written whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from grpo_mm.errors import ConfigError
from grpo_mm.outside import reason

logger = logging.getLogger(__name__)

BUSY_SECONDS = 30.0
LONGEST = 2**20
"""Characters of an answer that are kept."""
_AT_ONCE = 500
"""Keys of one look-up; SQLite bounds the number of its variables."""


def content_key(*parts: bytes) -> bytes:
    """A digest of parts of any length, told apart: ("ab", "c") is not ("a", "bc")."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.digest()


class AnswerStore:
    """Key → answer. A batch is written in one transaction, and the oldest answers beyond `size` go.

    A file that breaks while it is used (full disk, lock held for half a minute) costs answers, not the run: the first
    failure is logged. Put it on a disk that honours file locks; some network file systems do not.
    """

    def __init__(self, path: str | None = None, *, size: int = 1_000_000, read_only: bool = False) -> None:
        """`path` None keeps the answers in memory, for as long as this process lives.

        Raises:
            ConfigError: no such folder, no such file (read_only), or a file that is something else.
        """
        self.size, self.read_only = size, read_only
        self._where = path or "memory"
        self._lock = threading.Lock()
        self._warned = False
        if path is not None and read_only and not Path(path).is_file():
            raise ConfigError(f"cache = {path!r}: no such file, and only recorded answers may be used (replay).")
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise ConfigError(f"cache = {path!r}: its folder does not exist; make it first.")
        try:
            self._db = sqlite3.connect(path or ":memory:", timeout=BUSY_SECONDS, check_same_thread=False)
            self._db.text_factory = lambda found: found.decode("utf-8", "replace")  # one damaged answer is not all
            with self._db:
                others = self._db.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN ('answers', 'asked')"
                ).fetchall()
                if others:
                    raise sqlite3.DatabaseError(f"it is a database with the table {others[0][0]!r}")
                if not read_only:
                    self._db.execute(
                        "CREATE TABLE IF NOT EXISTS answers (id INTEGER PRIMARY KEY, key BLOB UNIQUE, answer TEXT)"
                    )
                    self._db.execute("CREATE TABLE IF NOT EXISTS asked (calls INTEGER)")
                self._db.execute("SELECT key, answer FROM answers LIMIT 1").fetchall()
        except sqlite3.Error as error:
            raise ConfigError(f"cache = {path!r} holds no answers of judges ({error}); name another file.") from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The answers that are there."""
        found: dict[bytes, str] = {}
        with self._lock:
            try:
                for i in range(0, len(keys), _AT_ONCE):
                    some = list(keys[i : i + _AT_ONCE])
                    marks = ",".join("?" * len(some))
                    rows = self._db.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", some)
                    found |= {key: answer for key, answer in rows if isinstance(answer, str)}
            except sqlite3.Error as error:
                self._warn(error)
        return found

    def put(self, answers: Mapping[bytes, str], *, calls: int) -> None:
        """Adds answers, and to the number of calls that were made for them. An answer that is there stays.

        Halves of characters become question marks, and of an answer the first 2²⁰ characters are kept.
        """
        kept = [(key, text[:LONGEST].encode("utf-8", "replace").decode()) for key, text in answers.items()]
        with self._lock:
            try:
                with self._db:
                    self._db.executemany("INSERT OR IGNORE INTO answers (key, answer) VALUES (?, ?)", kept)
                    self._db.execute("DELETE FROM answers WHERE id <= (SELECT max(id) FROM answers) - ?", (self.size,))
                    self._db.execute("INSERT INTO asked (calls) SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM asked)")
                    self._db.execute("UPDATE asked SET calls = calls + ?", (calls,))
            except sqlite3.Error as error:
                self._warn(error)

    def calls(self) -> int:
        """Calls made for this file so far, by all processes and runs that used it."""
        with self._lock:
            try:
                return int((self._db.execute("SELECT sum(calls) FROM asked").fetchone() or [0])[0] or 0)
            except (sqlite3.Error, ValueError, TypeError) as error:  # a foreign or damaged file may hold anything
                self._warn(error)
                return 0

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("cache of answers in %s: %s; what it cannot keep is asked again", self._where, reason(error))
