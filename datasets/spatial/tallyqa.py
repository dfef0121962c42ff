"""TallyQA: how many? Simple questions, and complex ones that take attributes and relations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from grpo_mm.datasets.shared.checked_fields import take_field, take_text
from grpo_mm.datasets.shared.picture_questions import PictureQuestions, QuestionRow, take_whole
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

Subset = Literal["all", "simple", "complex"]


@dataclass
class TallyQa(PictureQuestions):
    """Reads a list of {"image": "VG_100K/1.jpg", "answer": 4, "question", "question_id", "issimple": true, "data_source",
    "image_id"}. Ids are "tallyqa/<data_source>/<question_id>".

    target = {"answer": "4", "answer_type": "numerical", "question_type": "count", "task": "simple" or "complex"}, without
    "task" where the file does not say it.

    Source: arXiv:1810.12440. Uncertain: the sizes of its splits were not checked against the files.
    """

    template: str = "{query}\nAnswer with a number only, within <answer>…</answer>."
    """The question as the model gets it: {query} is that of the row."""
    subset: Subset = "all"
    """Rows without "issimple" are in all only."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".parquet")
    benchmark: ClassVar[str | None] = "tallyqa"

    def check(self) -> None:
        super().check()
        if self.subset not in get_args(Subset):
            raise ConfigError(f"{self.path}: subset = {self.subset!r}; wanted one of {', '.join(get_args(Subset))}.")

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        is_simple = row.get("issimple")
        if is_simple is not None and not isinstance(is_simple, bool):
            raise ConfigError(f"{where}: issimple is {shown(is_simple)}, wanted true or false.")
        task = None if is_simple is None else "simple" if is_simple else "complex"
        if self.subset not in ("all", task):
            return
        count = take_whole(row.get("answer"), "answer", where)
        if count < 0:
            raise ConfigError(f"{where}: answer is {count}, wanted 0 or more.")
        take_field(row, "question_id", where)
        source, name = row.get("data_source"), take_id(row, "question_id", where)
        if source:
            take_text(row, "data_source", where)
        yield QuestionRow(
            where,
            f"tallyqa/{source}/{name}" if source else f"tallyqa/{name}",
            take_text(row, "question", where),
            self._pictures([row.get("image")], where),
            str(count),
            {"answer_type": "numerical", "question_type": "count", "task": task},
        )
