"""Prompts of a file as its readers hand them out: each id once, those without their media left out, counted and named."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from grpo_mm.datasets.shared.columns import reading
from grpo_mm.datasets.shared.files import check_limit
from grpo_mm.datasets.shared.row_check import checked_prompt, row_net
from grpo_mm.datasets.shared.row_files import check_file, read_rows
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt

NAMED = 5
"""So many unusable rows are named in the log."""
log = logging.getLogger(__name__)


class RowReader:
    """The frame of a reader of one file: every row becomes a prompt by `_prompt`. Not a dataclass: the settings are the reader's."""

    path: str
    limit: int | None
    check_files: bool = False
    """Leave out, count and name rows whose media are not there."""
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json")
    leaves: ClassVar[tuple[str, ...]] = ()
    """Media columns of the published form that are left aside on purpose; any other that is not read refuses the run."""

    def check(self) -> None:
        """Raises ConfigError if the file is not there or the limit is below 1."""
        check_file(self.path, self.suffixes)
        check_limit(self.limit, self.path)

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a row that is broken, a repeated id, or if no row is left."""
        self.check()
        with reading(self.path, leave=(*self.leaves, *getattr(self, "for_rewards", ()))):
            return gathered(self._prompts(), self.path, check_files=self.check_files, limit=self.limit)

    def _prompts(self) -> Iterator[tuple[str, Prompt]]:
        """(where it stands, prompt), in the order of the file."""
        for number, (where, row) in enumerate(read_rows(self.path)):
            with row_net(where, row):
                prompt = self._prompt(row, where, number)
            yield where, prompt

    def _prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        """Of row `number`, counted from 0."""
        raise NotImplementedError


def gathered(
    prompts: Iterable[tuple[str, Prompt]], path: str, *, check_files: bool = False, limit: int | None = None
) -> list[Prompt]:
    """The first `limit` of (where it stands, prompt), in order.

    Args:
        path: of the file, for messages.
        check_files: leave out prompts with a picture or video file that is not there.

    Raises:
        ConfigError: a prompt is none (`checked_prompt`), an id stands twice, or no prompt is left.
    """
    kept: list[Prompt] = []
    seen: set[str] = set()
    missing: list[str] = []
    for where, prompt in prompts:
        checked_prompt(prompt, where)
        if prompt.id in seen:
            raise ConfigError(f"{where}: the id {shown(prompt.id)} stands twice.")
        seen.add(prompt.id)
        with row_net(where):
            is_there = not check_files or all(Path(m.path).exists() for m in prompt.media if hasattr(m, "path"))
        if not is_there:
            missing.append(prompt.id)
            continue
        kept.append(prompt)
        if len(kept) == limit:
            break
    if missing:
        log.warning("%s: %d rows left out: no such file (%s)", path, len(missing), ", ".join(missing[:NAMED]))
    if not kept:
        raise ConfigError(f"{path}: no row is left ({len(missing)} without their files).")
    return kept
