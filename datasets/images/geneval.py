"""GenEval's prompts with what each picture must show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.checked_fields import shown_keys, take_text
from grpo_mm.datasets.shared.columns import reading
from grpo_mm.datasets.shared.files import check_limit
from grpo_mm.datasets.shared.row_check import checked_prompt, row_net, text_problem
from grpo_mm.datasets.shared.row_files import check_file, read_rows
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt


@dataclass
class GenEvalPrompts:
    """Reads GenEval's metadata, a .jsonl file; Flow-GRPO's splits and the counting-edit set share the format.

    target = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]};
    a clause of `include` may add "color": "red" and "position": ["left of", 0], the number being an earlier clause.

    Source: arXiv:2310.11513; https://github.com/djghosh13/geneval (prompts/evaluation_metadata.jsonl).
    """

    path: str
    tags: list[str] | None = None
    """Only these: single_object, two_object, counting, colors, position, color_attr; None for all."""
    limit: int | None = None
    """Only the first rows, counted after `tags`."""

    def check(self) -> None:
        """Raises ConfigError if the file is not there or the limit is below 1."""
        check_file(self.path, (".jsonl",))
        check_limit(self.limit, self.path)

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a row that is not GenEval metadata, or if no row is left."""
        self.check()
        with reading(self.path, leave=("image",)):  # of the counting-edit set: what its pictures were made from
            return self._prompts()

    def _prompts(self) -> list[Prompt]:
        prompts: list[Prompt] = []
        tags_found: set[str] = set()
        for number, (where, row) in enumerate(read_rows(self.path)):
            with row_net(where, row):
                prompt = self._prompt(row, where, number)
            tags_found.add(prompt.target["tag"])
            if self.tags is None or prompt.target["tag"] in self.tags:
                prompts.append(prompt)
            if len(prompts) == self.limit:
                break
        if not prompts:
            raise ConfigError(
                f"{self.path}: no prompt with tags = {self.tags}; found the tags {shown(sorted(tags_found))}."
            )
        return prompts

    def _prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        target = _target(row, where)
        take_text(row, "prompt", where)
        return checked_prompt(Prompt(id=f"{Path(self.path).stem}/{number}", text=row["prompt"], target=target), where)


def _target(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    include, exclude, tag = (row.get(name) or empty for name, empty in (("include", []), ("exclude", []), ("tag", "")))
    if not include:
        raise ConfigError(f"{where}: no 'include' clause; found {shown_keys(row)}. Is this GenEval metadata?")
    if not isinstance(include, list) or not isinstance(exclude, list) or not isinstance(tag, str):
        raise ConfigError(
            f"{where}: include {shown(include)}, exclude {shown(exclude)}, tag {shown(tag)}; wanted lists of clauses, a text."
        )
    for number, clause in enumerate([*include, *exclude]):
        _check_clause(clause, min(number, len(include)), where)
    return {"tag": tag, "include": include, "exclude": exclude}


def _check_clause(clause: Any, earlier: int, where: str) -> None:
    """`earlier`: clauses of `include` that stand before it."""
    if not isinstance(clause, dict):
        raise ConfigError(f"{where}: a clause is {shown(clause)}; wanted an object with 'class' and 'count'.")
    count = clause.get("count")
    if text_problem(clause.get("class")) or type(count) is not int or count < 1:
        raise ConfigError(f"{where}: {shown(clause)} wants a 'class' (text) and a 'count' of at least 1.")
    if "color" in clause and text_problem(clause["color"]):
        raise ConfigError(f"{where}: {shown(clause)}: 'color' is no text.")
    place = clause.get("position", ["", 0])
    fine = isinstance(place, list) and len(place) == 2 and isinstance(place[0], str) and type(place[1]) is int
    if "position" in clause and not (fine and 0 <= place[1] < earlier):
        raise ConfigError(f"{where}: {shown(clause)}: 'position' is [relation, number of an earlier clause].")
