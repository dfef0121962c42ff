"""Does a text follow its template of tagged elements? The format reward of the thinking video models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.answers.times import strict_span_list
from grpo_mm.types import Prompt

Match = Literal["fullmatch", "search"]
Template = Literal["answer", "think_answer", "think_rethink_answer", "think_answer_glue"]

TEMPLATES: dict[str, tuple[str, ...]] = {name: tuple(name.split("_")) for name in get_args(Template)}
"""Template → its elements in order."""
_TAG = re.compile(r"</?(?:answer|think|rethink|glue)>")


def follows_template(text: str, elements: Sequence[str], *, match: Match = "fullmatch") -> bool:
    """Whether the elements stand in the text, in order, each once, and with only blanks between them.

    No tag of any template may occur besides, so elements neither nest nor repeat; other tags are plain text. An element
    may be empty. Linear in the text.

    Args:
        elements: e.g. ("think", "answer").
        match: "fullmatch" allows nothing before them and blanks after them; "search" allows any other text there.

    Source: the template rewards of Time-R1 (arXiv:2503.13377), TempSamp-R1 (arXiv:2509.18056) and Video-R1
    (arXiv:2503.21776). Grade A. Deviates: theirs let a lazy wildcard run over further tags, and some only look whether a
    tag is there; with "fullmatch" theirs allow no blanks behind the last element.
    """
    tags = [tag for element in elements for tag in (f"<{element}>", f"</{element}>")]
    found = list(_TAG.finditer(text))
    if [tag[0] for tag in found] != tags:
        return False
    gaps = [text[a.end() : b.start()] for a, b in zip(found[1:-1:2], found[2::2])]
    if match == "fullmatch":
        gaps.append(text[found[-1].end() :])
    starts_well = match == "search" or found[0].start() == 0
    return starts_well and all(not gap or gap.isspace() for gap in gaps)


@dataclass(frozen=True)
class TagFormat:
    """score = 1 if the text follows the template, else 0. It applies to every prompt.

    A glue element must besides hold a list of (start, end) pairs, none of which ends before it starts, see `strict_span_list`
    (VideoChat-R1, arXiv:2504.06958, code; grade A). Deviates: an empty list does not do.

    Where a chat template opens <think> at the end of the prompt, the engine puts that opening before the text that rewards
    see, so a well-formed answer follows its template here as well.
    """

    template: Template = "think_answer"
    """Elements that a text is to consist of, and their order."""
    match: Match = "fullmatch"
    """fullmatch: nothing else may stand in the text; search: something may."""

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES or self.match not in get_args(Match):
            raise ConfigError(
                f"template = {self.template!r}, match = {self.match!r}; wanted a template of {', '.join(TEMPLATES)} and "
                f"a match of {' or '.join(get_args(Match))}."
            )

    def applies_to(self, prompt: Prompt) -> bool:
        return True

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score [M]; of the prompts only their number is read."""
        return {"score": torch.tensor([float(self.follows(text)) for text, _ in zip(items, prompts, strict=True)])}

    def follows(self, text: str) -> bool:
        elements = TEMPLATES[self.template]
        if not follows_template(text, elements, match=self.match):
            return False
        if "glue" not in elements:
            return True
        spans = strict_span_list(last_element(text, "glue") or "")
        return spans is not None and all(start <= end for start, end in spans)
