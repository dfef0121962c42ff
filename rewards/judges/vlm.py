"""Asking a vision-language model about pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.identity import FREE
from grpo_mm.outside import shown
from grpo_mm.rewards.answers.tags import left_open
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.weights import check_model
from grpo_mm.weights.pretrained import check_chat, check_vocabulary, load_model, load_processor


class Question(NamedTuple):
    """Example: Question("Which of the two is sharper?", (first, second)); the pictures come before the text."""

    text: str
    images: tuple[Tensor, ...]
    """uint8 [3, H, W] each; they may differ in size."""


class Vlm(Protocol):
    """Also used where a model has them: `check()`, `to(device)`."""

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """An answer to each question on its own; None where there is none."""
        ...


JUDGE_SECONDS = 3600.0
"""The time limit, of a call on one rank, of rewards that ask a judge; `timeout_seconds` beside their `use` sets another."""


def answers_of(vlm: Any, questions: Sequence[Question]) -> list[str | None]:
    """What a model said to each question; None for what is no text.

    Raises:
        UserError: another number of answers than of questions: which is whose cannot be known.
    """
    answers = vlm.ask(questions)
    if not isinstance(answers, (list, tuple)):
        raise UserError(f"the judge's model gave {shown(answers, 80)}; wanted a list of {len(questions)} answers.")
    if len(answers) != len(questions):
        raise UserError(f"the judge gave {len(answers)} answers to {len(questions)} questions; wanted one for each.")
    return [answer if isinstance(answer, str) else None for answer in answers]


@dataclass
class TransformersVlm(Network):
    """A model that transformers loads as image-text-to-text, with its own chat template; greedy decoding.

    An answer does not depend on the others of its batch, but for rounding: shorter questions are padded on the left.
    """

    model: str
    """A name on the hub or a local folder, e.g. "CodeGoat24/UnifiedReward-Think-qwen-7b"."""
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_new_tokens: int = 4096
    batch_size: int = field(default=8, metadata=FREE)

    def __post_init__(self) -> None:
        at_least_one("local model", max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)

    def check(self) -> None:
        """Raises ConfigError if the name is a path where there is no folder."""
        if self.model.startswith((".", os.sep)) and not os.path.isdir(self.model):
            raise ConfigError(f"model = {self.model!r}: no such folder.")
        if os.path.isdir(self.model):
            check_model("model", self.model)

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        self._load()
        starts = range(0, len(questions), self.batch_size)
        return [answer for i in starts for answer in self._answers(questions[i : i + self.batch_size])]

    @torch.no_grad()
    def _answers(self, questions: Sequence[Question]) -> list[str | None]:
        chats = [
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "image": picture(image)} for image in question.images),
                        {"type": "text", "text": question.text},
                    ],
                }
            ]
            for question in questions
        ]
        inputs = self._processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._device, dtype=self._model.dtype)  # fmt: skip
        tokens = self._model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        length = inputs["input_ids"].shape[1]
        # Where the template opens the thinking, an answer that is cut off within it would pass for one.
        opened = [left_open(end) for end in self._processor.batch_decode(tokens[:, max(0, length - 32) : length])]
        answers = self._processor.batch_decode(tokens[:, length:], skip_special_tokens=True)
        return [before + answer for before, answer in zip(opened, answers, strict=True)]

    def _build(self) -> torch.nn.Module:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        parts = ("tokenizer", "image_processor")
        self._processor = load_processor(AutoProcessor, self.model, parts=parts, revision=self.revision)
        check_chat(self._processor, where=self.model, media=["image"])
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"  # generation goes on at the right end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = load_model(AutoModelForImageTextToText, self.model, revision=self.revision, dtype=self.dtype)
        check_vocabulary(tokenizer, model, where=self.model)
        settings = model.generation_config
        settings.temperature = settings.top_p = settings.top_k = None  # for sampling only; else a warning a call
        settings.pad_token_id = tokenizer.pad_token_id
        return model


def picture(image: Tensor) -> Any:
    """uint8 [3, H, W] -> a PIL picture."""
    from PIL import Image

    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def at_least_one(what: str, **settings: int) -> None:
    """Raises ConfigError for a setting below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ConfigError(f"{what}: {name} = {value}, wanted 1 or more.")
