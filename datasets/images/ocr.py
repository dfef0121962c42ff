"""Prompts that ask for a text in the picture."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from grpo_mm.datasets.shared.files import PromptFile, check_file
from grpo_mm.errors import ConfigError
from grpo_mm.types import Prompt


@dataclass
class OcrPrompts:
    """One prompt a line; the text to render is the first double-quoted span, and becomes target = {"text": …}.

    Example: A sign that says "OPEN" in neon -> {"text": "OPEN"}

    Source: Flow-GRPO, arXiv:2505.05470; the rule is in flow_grpo/ocr.py of yifan123/flow_grpo.
    """

    path: str
    limit: int | None = None

    def check(self) -> None:
        """Raises ConfigError if the file is not there."""
        check_file(self.path, (".txt",))

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a prompt without a quoted text."""
        self.check()
        return [_with_target(prompt) for prompt in PromptFile(self.path, limit=self.limit).load()]


def _with_target(prompt: Prompt) -> Prompt:
    spans = [span for span in re.findall(r'"([^"]*)"', prompt.text) if span.strip()]
    if not spans:
        raise ConfigError(f'{prompt.id}: no "text" in double quotes to render: {prompt.text!r}')
    return replace(prompt, target={"text": spans[0]})
