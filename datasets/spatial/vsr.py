"""VSR: is a statement about where two things are true of the picture?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from grpo_mm.datasets.shared.checked_fields import take_text
from grpo_mm.datasets.shared.picture_questions import PictureQuestions, QuestionRow
from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, shown

WORDS = ("no", "yes")
"""By label."""


@dataclass
class Vsr(PictureQuestions):
    """Reads lines {"image": "000000017697.jpg", "caption": "The car is behind the suitcase.", "label": 1, "relation":
    "behind", "subj": "car", "obj": "suitcase", "annotator_id", "vote_true_validator_id": "[18, 2]", …}. Ids are
    "vsr/<file stem>/<row number>".

    target = {"answer": "yes", "answer_type": "multiple choice", "choices": ["yes", "no"], "question_type": "relation",
    "task": "behind", "subject", "object", "votes": [true, false]}; votes count the people who checked the label.

    Source: arXiv:2205.00363; the words of the question are ours.
    """

    template: str = 'Is this statement true of the picture: "{query}"\nAnswer yes or no, as <answer>yes</answer> or <answer>no</answer>.'

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json")
    benchmark: ClassVar[str | None] = "vsr"
    leaves: ClassVar[tuple[str, ...]] = ("image_link",)

    def _questions(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[QuestionRow]:
        label = row.get("label")
        if type(label) is not int or label not in (0, 1):
            raise ConfigError(f"{where}: label is {shown(label)}, wanted 0 or 1.")
        votes = [_voters(row, f"vote_{side}_validator_id", where) for side in ("true", "false")]
        yield QuestionRow(
            where,
            f"vsr/{Path(self.path).stem}/{number}",
            take_text(row, "caption", where),
            self._pictures([row.get("image")], where),
            WORDS[label],
            {
                "answer_type": "multiple choice",
                "question_type": "relation",
                "task": take_text(row, "relation", where),
                "subject": row.get("subj"),
                "object": row.get("obj"),
                "votes": None if None in votes else votes,
            },
            choices=("yes", "no"),
        )


def _voters(row: Mapping[str, Any], name: str, where: str) -> int | None:
    """How many people stand in a list that is written as a text, "[18, 2]"; None where the row has no such field."""
    value = row.get(name)
    if value is None:
        return None
    try:
        voters = parse_json(value) if isinstance(value, str) else value
    except BadJson:
        voters = None
    if not isinstance(voters, list):
        raise ConfigError(f"{where}: {name} is {shown(value)}, wanted a list of people.")
    return len(voters)
