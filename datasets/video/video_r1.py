"""Questions on videos and pictures in the form of Video-R1."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.media.media_files import ImageFile, VideoFile
from grpo_mm.datasets.shared.checked_fields import fill, take_field, take_text
from grpo_mm.datasets.shared.gathered import RowReader
from grpo_mm.datasets.shared.row_check import take_id, text_problem
from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number, shown
from grpo_mm.types import Prompt

ANSWER_TYPES = {
    "multiple choice": "multiple choice",
    "numerical": "numerical",
    "ocr": "ocr",
    "free-form": "free text",
    "regression": "regression",
}
"""Their `problem_type`, in lower case, to our `answer_type`."""
HOW = {
    "multiple choice": "Answer with the letter of the right option only.",
    "numerical": "Answer with a number.",
    "ocr": "Answer with the text exactly as it is written.",
    "free text": "Answer in words.",
    "regression": "Answer with a number.",
}
SOLUTION = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass
class VideoR1Questions(RowReader):
    """Reads a JSON list, or lines, of {"problem_id", "problem", "data_type": "video" | "image", "problem_type", "options",
    "solution": "<answer>B</answer>", "path", "data_source"}. Ids are "video_r1/<problem_id>".

    target = {"answer": "B", "answer_type": "multiple choice", "options": [...], "data_type": "video", "data_source": …};
    `demo` is the solution in its answer element. A row's "map", {"chair": [[2, 3]], …} on a grid, goes into the target (SpaceR,
    arXiv:2504.01805).

    Source: arXiv:2503.21776.
    """

    path: str
    """The file, or the folder, with the rows."""
    folder: str = "."
    """What the paths in the file are relative to."""
    template: str = "{query}{options}\n{how} Put the answer into <answer>…</answer>."
    """str.format with {query}, {options} (each on a line of its own, or nothing) and {how}, a sentence by answer type."""
    answer_types: list[str] | None = None
    """Only these: multiple choice, numerical, ocr, free text, regression; None for all."""
    check_files: bool = False
    """Leave out, count and name rows whose video or picture is not there."""
    limit: int | None = None
    """Only the first rows, counted after the choices above."""

    def check(self) -> None:
        """Raises ConfigError if the file is not there or an answer type is unknown."""
        super().check()
        for name in self.answer_types or ():
            if name not in HOW:
                raise ConfigError(f"{self.path}: answer type {name!r}; there are {', '.join(HOW)}.")

    def _prompts(self) -> Iterator[tuple[str, Prompt]]:
        for where, prompt in super()._prompts():
            if self.answer_types is None or prompt.target["answer_type"] in self.answer_types:
                yield where, prompt

    def _prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        take_field(row, "problem_id", where)
        found = take_text(row, "problem_type", where)
        if found.lower() not in ANSWER_TYPES:
            raise ConfigError(f"{where}: problem_type {shown(found)}, wanted one of {', '.join(ANSWER_TYPES)}.")
        answer_type = ANSWER_TYPES[found.lower()]
        solution = take_text(row, "solution", where)
        match = SOLUTION.search(solution)
        if match is None or not match[1].strip():
            raise ConfigError(f"{where}: solution {shown(solution)} has no <answer>…</answer>.")
        options = row.get("options") or []
        if (
            not isinstance(options, list)
            or any(map(text_problem, options))
            or (answer_type == "multiple choice" and not options)
        ):
            raise ConfigError(f"{where}: options are {shown(options)}, wanted a list of texts.")
        kind = row.get("data_type")
        media = {"video": VideoFile, "image": ImageFile}.get(kind) if isinstance(kind, str) else None
        if media is None:
            raise ConfigError(f"{where}: data_type is {shown(kind)}, wanted video or image.")
        words = {
            "query": take_text(row, "problem", where),
            "options": "".join(f"\n{option}" for option in options),
            "how": HOW[answer_type],
        }
        target = {"answer": match[1].strip(), "answer_type": answer_type, "data_type": row["data_type"]}
        target |= {"options": options} if options else {}
        target |= {"data_source": row["data_source"]} if "data_source" in row else {}
        target |= {"map": _layout(row["map"], where)} if row.get("map") else {}
        return Prompt(
            id=f"video_r1/{take_id(row, 'problem_id', where)}",
            text=fill(self.template, words, "template", where),
            media=(media(str(Path(self.folder) / take_text(row, "path", where))),),
            target=target,
            demo=f"<answer>{match[1].strip()}</answer>",
        )


def _layout(value: Any, where: str) -> dict[str, Any]:
    """Name → [[x, y], …], checked."""
    fine = isinstance(value, dict) and all(
        isinstance(places, list) and all(map(_is_cell, places)) for places in value.values()
    )
    if not fine:
        raise ConfigError(f"{where}: map is {shown(value)}, wanted names with a list of [x, y] each.")
    return value


def _is_cell(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(finite_number(v) is not None for v in value)
