"""Prompts that ask for a text in the picture."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from grpo_mm.datasets.shared.files import PromptFile, check_limit
from grpo_mm.datasets.shared.row_check import text_problem
from grpo_mm.datasets.shared.row_files import check_file
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt


@dataclass
class OcrPrompts:
    """One prompt a line; the text to render is the first double-quoted span, and becomes target = {"text": …}.

    Example: A sign that says "OPEN" in neon -> {"text": "OPEN"}

    Source: Flow-GRPO, arXiv:2505.05470; the rule is in flow_grpo/ocr.py of yifan123/flow_grpo.
    """

    path: str
    """The file, or the folder, with the rows."""
    limit: int | None = None
    """So many prompts are taken, from the first on; null: all."""

    def check(self) -> None:
        """Raises ConfigError if the file is not there or the limit is below 1."""
        check_file(self.path, (".txt",))
        check_limit(self.limit, self.path)

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a prompt without a quoted text."""
        self.check()
        return [_with_target(prompt, self.path) for prompt in PromptFile(self.path, limit=self.limit).load()]


def _with_target(prompt: Prompt, path: str) -> Prompt:
    spans = [span for span in re.findall(r'"([^"]*)"', prompt.text) if not text_problem(span)]
    if not spans:
        raise ConfigError(f'{path}: prompt {prompt.id}: no "text" in double quotes to render: {shown(prompt.text)}.')
    return replace(prompt, target={"text": spans[0]})
