"""Texts of prompts stay texts: control tokens that stand in them are spelled out, never obeyed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STAND_INS = "".join(map(chr, range(0xFDD0, 0xFDF0)))
"""Characters that Unicode keeps free for uses like this one."""

BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
"""What a processor makes for each token, [1, L]."""


@dataclass(frozen=True)
class SpelledOut:
    """Control tokens of a conversation's texts on their way through the chat template and the processor.

    Example: "say <|im_end|>" goes to the template with a stand-in, "say ␦0␦", to the processor with `carrier` in its place, and
    comes back as the ids of "say " and of the ten characters of <|im_end|>.
    """

    control: tuple[str, ...]
    """The tokens of the tokenizer that the texts hold."""
    carrier: str
    """A control token that the processor leaves alone."""
    mark: str

    def stand_in(self, text: str) -> str:
        """`text` with a stand-in for each control token."""
        return self._any(self.control).sub(lambda found: self._marked(self.control.index(found[0])), text)

    def carried(self, rendered: str) -> tuple[str, list[str | None]]:
        """What the processor is given, and for each carrier in it the token that it stands for; None for the template's own."""
        marked = [self._marked(number) for number in range(len(self.control))]
        pattern = self._any((*marked, self.carrier))
        found = [
            None if text == self.carrier else self.control[marked.index(text)] for text in pattern.findall(rendered)
        ]
        return pattern.sub(lambda _: self.carrier, rendered), found

    def spelled(self, inputs: Mapping[str, Tensor], meant: Sequence[str | None], tokenizer: Any) -> dict[str, Tensor]:
        """The processor's inputs with each carrier that stands for another token as the ids of that token's characters.

        Raises:
            ValueError: the tokenizer has not kept each carrier as one token.
        """
        ids = inputs["input_ids"][0].tolist()
        carriers = [i for i, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids(self.carrier)]
        if len(carriers) != len(meant):
            raise ValueError(f"{len(meant)} control tokens {self.carrier!r} were {len(carriers)} after tokenising.")
        spelling = {
            place: tokenizer(token, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for place, token in zip(carriers, meant, strict=True)
            if token is not None
        }
        found = dict(inputs)
        for name, value in inputs.items():
            if name in BY_TOKEN:
                pieces = [
                    (spelling[i] if name == "input_ids" else [one] * len(spelling[i])) if i in spelling else [one]
                    for i, one in enumerate(value[0].tolist())
                ]
                found[name] = torch.tensor([[one for piece in pieces for one in piece]], dtype=value.dtype)
        return found

    def _marked(self, number: int) -> str:
        return f"{self.mark}{number}{self.mark}"

    @staticmethod
    def _any(texts: Iterable[str]) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))


def spelled_out(turns: Sequence[dict[str, Any]], processor: Any) -> tuple[list[dict[str, Any]], SpelledOut | None]:
    """The conversation without the control tokens of its texts, and how they come back; None where there are none.

    Raises:
        ValueError: no token is left to carry them.
    """
    tokenizer, texts = processor.tokenizer, list(_texts(turns))
    known = control_tokens(tokenizer)
    control = tuple(token for token in known if any(token in text for text in texts))
    if not control:
        return list(turns), None
    busy = {getattr(processor, f"{kind}_token", None) for kind in ("image", "video")}
    carrier = next((token for token in (tokenizer.eos_token, *known) if token is not None and token not in busy), None)
    mark = next((mark for mark in STAND_INS if not any(mark in text for text in texts)), None)
    if carrier is None or mark is None:
        raise ValueError(f"its text holds the control token {control[0]!r}, and nothing can stand for it.")
    way = SpelledOut(control, carrier, mark)
    return [turn | {"content": _changed(turn["content"], way)} for turn in turns], way


def control_tokens(tokenizer: Any) -> list[str]:
    """The special tokens of a tokenizer, the longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {*tokenizer.all_special_tokens, *(str(token) for token in added if getattr(token, "special", False))}
    return sorted((token for token in found if token), key=lambda token: (-len(token), token))


def _texts(turns: Sequence[dict[str, Any]]) -> Iterable[str]:
    for turn in turns:
        content = turn["content"]
        yield from (
            [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
        )


def _changed(content: Any, way: SpelledOut) -> Any:
    if isinstance(content, str):
        return way.stand_in(content)
    return [part | {"text": way.stand_in(part["text"])} if part["type"] == "text" else part for part in content]
