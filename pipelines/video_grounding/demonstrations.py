"""Demonstrations put into a group in place of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.models.loading import Loaded
from grpo_mm.pipelines.vlm.prompting.chat import opened_by_template
from grpo_mm.types import Prompt, Rows


@dataclass(frozen=True)
class LastRow:
    """The last sample of a group is the prompt's `demo`, where it has one; nothing is drawn for it.

    Source: arXiv:2509.18056 (TempSamp-R1): G - 1 samples and the annotated answer, grades [A] (second release) and [B];
    arXiv:2508.07750 (GRAO) compares samples with a demonstration as well.
    """

    template: str = "{demo}"
    """Its text. With a thinking template the papers do not say what stands in the thinking slot (uncertain): the default
    is an answer alone, to be exempted from the format reward; "<think></think>{demo}" has an empty slot."""

    def check(self, group_size: int) -> None:
        if "{demo}" not in self.template:
            raise ConfigError(f"engine.demonstrate.template = {self.template!r}; wanted {{demo}} in it.")
        if group_size < 2:
            raise ConfigError(
                f"engine.demonstrate takes one row of each group, but group_size = {group_size}; wanted 2 or more."
            )

    def rows(self, rows: Rows) -> Tensor:
        """[N] bool, the rows that are demonstrations."""
        has_demo_P = torch.tensor([prompt.demo is not None for prompt in rows.prompts], dtype=torch.bool)
        return (rows.sample_N == rows.group_size - 1) & has_demo_P[rows.prompt_N]

    def tokens(self, prompt: Prompt, loaded: Loaded, *, most: int) -> list[int]:
        """The ids of the demonstration as a sampled row would end it: with the end of turn of the chat template.

        A tag that the chat template opens in the prompt is not opened again.

        Raises:
            ConfigError: it is no text, is longer than `most`, holds tokens that are never sampled, or does not begin with the
                tag that the chat template opens.
        """
        where = f"the demonstration of prompt {prompt.id!r}"
        if not isinstance(prompt.demo, str):
            raise ConfigError(f"{where} is a {type(prompt.demo).__name__}; wanted the text of an answer.")
        text = self.template.replace("{demo}", prompt.demo)
        if opened := opened_by_template(loaded.processor).strip():
            if not text.lstrip().startswith(opened):
                raise ConfigError(
                    f"{where} does not begin with {opened}, which the chat template opens in the prompt: set "
                    f"engine.demonstrate.template, for instance to {opened}{opened.replace('<', '</')}{{demo}}."
                )
            text = text.lstrip().removeprefix(opened).lstrip("\n")
        ids = [*loaded.processor.tokenizer(text, add_special_tokens=False)["input_ids"], loaded.end_of_turn]
        if len(ids) > most:
            raise ConfigError(f"{where} has {len(ids)} tokens; engine.max_new_tokens is {most}. Raise it.")
        if set(ids) & set(loaded.forbidden):
            raise ConfigError(f"{where} holds a token that is never sampled, such as a placeholder of a picture.")
        return ids
