"""Prompts from a Hugging Face dataset, by name or by local path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.files import check_limit, find_text_field
from grpo_mm.errors import ConfigError
from grpo_mm.types import Prompt


@dataclass
class HubPrompts:
    """Prompts from a split of a dataset on the hub, of a folder of data files, or of one written by `save_to_disk`.

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
        """Raises ConfigError for an unknown split or column, an empty split, or a repeated id."""
        self.check()
        dataset = self._open()
        where, columns = f"{self.name} [{self.split}]", dataset.column_names
        text_field = self.text_field or find_text_field(dict.fromkeys(columns), where)
        others = [c for c in columns if c not in (text_field, self.id_field)]
        target_fields = others if self.target_fields is None else self.target_fields
        wanted = [c for c in (text_field, self.id_field, *target_fields) if c is not None]
        for column in wanted:
            if column not in columns:
                raise ConfigError(f"{where}: no column {column!r}; found {', '.join(map(repr, columns))}.")
        if self.limit is not None:
            dataset = dataset.select(range(min(self.limit, len(dataset))))
        rows = dataset.select_columns(list(dict.fromkeys(wanted)))
        stem = Path(self.name).name
        prompts = [self._prompt(row, number, stem, text_field, target_fields) for number, row in enumerate(rows)]
        if not prompts:
            raise ConfigError(f"{where}: there is no row in this split.")
        if len({prompt.id for prompt in prompts}) < len(prompts):
            raise ConfigError(f"{where}: values of {self.id_field!r} repeat; ids are unique. Leave id_field out.")
        return prompts

    def _open(self) -> Any:
        # A folder called `datasets` at the root of a checkout does not shadow this: it has no __init__.py.
        from datasets import load_dataset, load_from_disk

        folder = Path(self.name)
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            saved = load_from_disk(self.name)
            splits = saved if isinstance(saved, dict) else {str(saved.split or self.split): saved}
            if self.split not in splits:
                raise ConfigError(f"{self.name}: no split {self.split!r}; found {', '.join(map(repr, splits))}.")
            return splits[self.split]
        try:
            return load_dataset(self.name, self.config, split=self.split, revision=self.revision)
        except (FileNotFoundError, ValueError) as error:  # unknown name, configuration, split or revision
            raise ConfigError(f"{self.name} [{self.split}]: {error}") from error

    def _prompt(self, row: dict[str, Any], number: int, stem: str, text_field: str, target_fields: list[str]) -> Prompt:
        name = number if self.id_field is None else row[self.id_field]
        target = {field: row[field] for field in target_fields}
        return Prompt(id=f"{stem}/{name}", text=row[text_field], target=target or None)
