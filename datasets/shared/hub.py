"""Prompts from a Hugging Face dataset, by name or by local path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.checked_fields import take_text
from grpo_mm.datasets.shared.columns import no_field, tell_kept
from grpo_mm.datasets.shared.files import check_limit, find_text_field
from grpo_mm.datasets.shared.row_check import checked_prompt, row_net, take_id
from grpo_mm.errors import ConfigError
from grpo_mm.outside import reason, shown
from grpo_mm.types import Prompt

MISSING = ("", "nan", "NaN", "-nan", "-NaN", "#N/A")
"""What says in a .csv file that there is nothing; the words None, NA and null are words."""


@dataclass
class HubPrompts:
    """Prompts from a split of a dataset on the hub, of a folder of data files, or of one written by `save_to_disk`.

    A category (ClassLabel) is given by its name, as a model would write it.

    Ids are "<last part of the name>/<row number>" or "<last part of the name>/<value of id_field>".
    """

    name: str
    """"org/name" or the path of a folder."""
    split: str = "train"
    text_field: str | None = None
    """None: the first of prompt, text, caption, prompt_en."""
    id_field: str | None = None
    target_fields: list[str] | None = None
    """What rewards get as `target`; None: every other column. Name them if a column holds images: those are slow."""
    config: str | None = None
    """The dataset's configuration (subset), if it has several."""
    revision: str | None = None
    """A commit or tag of the hub, so that a run can be repeated."""
    limit: int | None = None

    def check(self) -> None:
        """Raises ConfigError if the name is a path where there is no folder; asks nobody on the network."""
        if self.name.startswith((".", "/", "~")) and not Path(self.name).is_dir():
            raise ConfigError(f"name = {self.name!r}: no such folder.")
        check_limit(self.limit, self.name)

    def load(self) -> list[Prompt]:
        """Raises ConfigError for an unknown split or column, an empty split, a row that is broken, or a repeated id."""
        self.check()
        dataset = self._open()
        where, columns = f"{self.name} [{self.split}]", dataset.column_names
        text_field = self.text_field or find_text_field(columns, where)
        others = [c for c in columns if c not in (text_field, self.id_field)]
        target_fields = others if self.target_fields is None else self.target_fields
        wanted = [c for c in (text_field, self.id_field, *target_fields) if c is not None]
        for column in wanted:
            if column not in columns:
                raise no_field(column, columns, where)
            if f"{column}.1" in columns:
                raise ConfigError(f"{where}: the column {column!r} stands twice in its file; name each column once.")
        if self.limit is not None:
            dataset = dataset.select(range(min(self.limit, len(dataset))))
        rows = dataset.select_columns(list(dict.fromkeys(wanted)))
        names = {column: rows.features[column].names for column in wanted if hasattr(rows.features[column], "names")}
        prompts, seen = [], set()
        for here, row in _numbered(rows, where):
            with row_net(here):
                row |= {column: _category(row[column], named) for column, named in names.items()}
                prompt = self._prompt(row, len(prompts), here, text_field, target_fields)
            if prompt.id in seen:
                raise ConfigError(
                    f"{here}: {self.id_field} = {shown(row[self.id_field])} stands twice; ids are unique."
                )
            seen.add(prompt.id)
            prompts.append(prompt)
        if not prompts:
            raise ConfigError(f"{where}: there is no row in this split.")
        tell_kept(where, target_fields)
        return prompts

    def _open(self) -> Any:
        try:
            return data_set_split(self.name, self.split, self.config, self.revision)
        except ConfigError:
            raise
        except Exception as error:  # unknown name, configuration, split or revision; damaged files; no network
            raise ConfigError(f"{self.name} [{self.split}]: it cannot be read: {reason(error)}") from error

    def _prompt(
        self, row: dict[str, Any], number: int, where: str, text_field: str, target_fields: list[str]
    ) -> Prompt:
        name = str(number) if self.id_field is None else take_id(row, self.id_field, where)
        target = {field: row[field] for field in target_fields}
        take_text(row, text_field, where)
        prompt = Prompt(id=f"{Path(self.name).name}/{name}", text=row[text_field], target=target or None)
        return checked_prompt(prompt, where)


def data_set_split(name: str, split: str, config: str | None = None, revision: str | None = None) -> Any:
    """One split of a data set of the hub, of a folder of data files, or of what `save_to_disk` wrote.

    Raises:
        ConfigError: what was saved has no such split. Whatever else fails raises what Hugging Face's package raises.
    """
    # A folder called `datasets` at the root of a checkout does not shadow this: it has no __init__.py.
    import datasets as hugging_face

    if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "dataset_info.json")):
        saved = hugging_face.load_from_disk(name)
        splits = saved if isinstance(saved, dict) else {str(saved.split or split): saved}
        if split not in splits:
            raise ConfigError(f"{name}: no split {split!r}; found {', '.join(map(repr, splits))}.")
        return splits[split]
    builder = hugging_face.load_dataset_builder(name, config, revision=revision)
    is_table = hasattr(builder.config, "keep_default_na")
    words = {"keep_default_na": False, "na_values": list(MISSING)} if is_table else {}
    return hugging_face.load_dataset(name, config, split=split, revision=revision, **words)


def _category(value: Any, names: Sequence[str]) -> str | None:
    """The name of a category; None for one that nobody gave, which is stored as -1."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _numbered(rows: Iterable[dict[str, Any]], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("name [split], row 3", row), counted from 0; a row may hold a picture that cannot be decoded."""
    found, number = iter(rows), 0
    while True:
        here = f"{where}, row {number}"
        with row_net(here):
            row = next(found, None)
        if row is None:
            return
        yield here, row
        number += 1
