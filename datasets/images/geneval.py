"""GenEval's prompts with what each picture must show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.shared.files import check_file, check_limit, read_rows, take_field
from grpo_mm.errors import ConfigError
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
        stem, prompts, tags_found = Path(self.path).stem, [], set()
        for number, (where, row) in enumerate(read_rows(self.path)):
            text, target = take_field(row, "prompt", where), _target(row, where)
            tags_found.add(target["tag"])
            if self.tags is None or target["tag"] in self.tags:
                prompts.append(Prompt(id=f"{stem}/{number}", text=text, target=target))
            if len(prompts) == self.limit:
                break
        if not prompts:
            raise ConfigError(f"{self.path}: no prompt with tags = {self.tags}; found the tags {sorted(tags_found)}.")
        return prompts


def _target(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    include, exclude = row.get("include", []), row.get("exclude", [])
    if not include:
        raise ConfigError(f"{where}: no 'include' clause; found {', '.join(map(repr, row))}. Is this GenEval metadata?")
    for number, clause in enumerate([*include, *exclude]):
        if not isinstance(clause.get("class"), str) or not isinstance(clause.get("count"), int) or clause["count"] < 1:
            raise ConfigError(f"{where}: {clause} wants a 'class' (text) and a 'count' of at least 1.")
        earlier = range(min(number, len(include)))
        if "position" in clause and (len(clause["position"]) != 2 or clause["position"][1] not in earlier):
            raise ConfigError(f"{where}: {clause}: 'position' is [relation, number of an earlier clause].")
    return {"tag": row.get("tag", ""), "include": include, "exclude": exclude}
