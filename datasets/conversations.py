"""Questions with one or several pictures as conversations, the form of VLM-R1 and of LLaVA."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_mm.datasets.checked_fields import fill, take_text
from grpo_mm.datasets.files import check_file, read_rows, take_field
from grpo_mm.datasets.grounding import NAMED
from grpo_mm.datasets.video import ImageFile
from grpo_mm.errors import ConfigError
from grpo_mm.types import Prompt

ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
MARKER = "<image>"
log = logging.getLogger(__name__)


@dataclass
class Conversations:
    """Reads lines {"id": 1, "image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "…"}, {"from":
    "gpt", "value": "…"}]}; `image` may be one name, several, or missing. Ids are "<file stem>/<id>".

    Markers <image> in the question say where each picture stands; without any, pictures come first. The second turn is
    the answer: target = {"answer": …}, without its answer element if it has one.

    Source: VLM-R1, arXiv:2504.07615.
    """

    path: str
    images: str = "images"
    """The folder with the pictures."""
    template: str = "{query}\nPut the final answer into <answer>…</answer>."
    """str.format with {query}."""
    demo_template: str = "<answer>{answer}</answer>"
    answer_type: str | None = None
    """How rewards should compare answers, the same for the whole file; the format does not say it."""
    check_files: bool = False
    """Leave out, count and name rows with a picture that is not there."""
    limit: int | None = None

    def check(self) -> None:
        """Raises ConfigError if the file is not there."""
        check_file(self.path, (".jsonl", ".json"))

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a row that is broken, a repeated id, or if no row is left."""
        self.check()
        prompts, seen, missing = [], set(), []
        for number, (where, row) in enumerate(read_rows(self.path)):
            prompt = self._prompt(row, where, number)
            if prompt.id in seen:
                raise ConfigError(f"{where}: the id {prompt.id!r} stands twice.")
            seen.add(prompt.id)
            if self.check_files and not all(Path(image.path).is_file() for image in prompt.media):
                missing.append(prompt.id)
                continue
            prompts.append(prompt)
            if len(prompts) == self.limit:
                break
        if missing:
            log.warning("%s: %d rows left out: no such file (%s)", self.path, len(missing), ", ".join(missing[:NAMED]))
        if not prompts:
            raise ConfigError(f"{self.path}: no row is left ({len(missing)} without their pictures).")
        return prompts

    def _prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        names = row.get("image") or []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"{where}: image is {names!r:.200}, wanted a name or a list of names.")
        query, answer = _turns(take_field(row, "conversations", where), where)
        markers = query.count(MARKER)
        if markers and markers != len(names):
            raise ConfigError(f"{where}: {markers} markers {MARKER} for {len(names)} pictures.")
        match = ANSWER.search(answer)
        answer = match[1].strip() if match else answer
        target = {"answer": answer} | ({"answer_type": self.answer_type} if self.answer_type else {})
        return Prompt(
            id=f"{Path(self.path).stem}/{row.get('id', number)}",
            text=fill(self.template, {"query": query}, "template", where),
            media=tuple(ImageFile(str(Path(self.images) / name)) for name in names),
            target=target,
            demo=fill(self.demo_template, {"query": query, "answer": answer}, "demo_template", where),
        )


def _turns(turns: Any, where: str) -> tuple[str, str]:
    fine = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not fine or [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise ConfigError(f"{where}: wanted one turn from 'human' and one from 'gpt', found {turns!r:.200}.")
    return take_text(turns[0], "value", where), take_text(turns[1], "value", where)
