"""Prompts from a text, table or JSON file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.checked_fields import shown_keys, take_field, take_text
from grpo_mm.datasets.shared.columns import cells, tell_kept
from grpo_mm.datasets.shared.row_check import checked_prompt, row_net, take_id
from grpo_mm.datasets.shared.row_files import check_file, read_rows
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt

__all__ = ["PromptFile", "check_file", "check_limit", "find_text_field", "read_rows", "take_field"]

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
        seen: dict[str, str] = {}
        prompts: list[Prompt] = []
        for where, row in read_rows(self.path):
            with row_net(where, row):
                prompt = self._prompt(row, where, len(prompts))
            if prompt.id in seen:
                name = prompt.id.partition("/")[2]
                raise ConfigError(
                    f"{where}: {self.id_field} = {shown(name)} was used at {seen[prompt.id]}; ids are unique."
                )
            seen[prompt.id] = where
            prompts.append(prompt)
            if len(prompts) == self.limit:
                break
        if not prompts:
            raise ConfigError(f"{self.path}: there is no prompt in this file.")
        tell_kept(self.path, (name for prompt in prompts for name in prompt.target or ()))
        return prompts

    def _prompt(self, row: dict[str, Any], where: str, number: int) -> Prompt:
        text_field = self.text_field or find_text_field(row, where)
        take_field(row, text_field, where)
        text = take_text(row, text_field, where)
        name = str(number)
        if self.id_field is not None:
            take_field(row, self.id_field, where)
            name = take_id(row, self.id_field, where)
        target = {key: value for key, value in cells(row) if key not in (text_field, self.id_field)}
        return checked_prompt(Prompt(id=f"{Path(self.path).stem}/{name}", text=text, target=target or None), where)


def find_text_field(row: Iterable[str], where: str) -> str:
    """The name of the field that holds the prompt.

    Raises:
        ConfigError: there is none, or two whose names differ by their case alone.
    """
    by_lower: dict[str, list[str]] = {}
    for key in row:
        by_lower.setdefault(key.strip().lower(), []).append(key)
    for name in TEXT_FIELDS:
        found = by_lower.get(name, [])
        if len(found) > 1:
            raise ConfigError(
                f"{where}: {' and '.join(map(shown, found))} may both hold the prompt. Set text_field to the one that does."
            )
        if found:
            return found[0]
    raise ConfigError(
        f"{where}: found the fields {shown_keys(row)}; none is called {', '.join(TEXT_FIELDS)}. "
        "Set text_field to the one that holds the prompt."
    )


def check_limit(limit: int | None, path: str) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"{path}: limit = {limit}, wanted at least 1, or null for all rows.")
