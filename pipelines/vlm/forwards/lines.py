"""Texts that go on from something already read, laid out for one forward and sent through the language model.

c contexts   b lines   T tokens of a line, of one text after the other   L tokens read before   K keys   D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from grpo_mm.pipelines.vlm.forwards import cascade, flex
from grpo_mm.pipelines.vlm.forwards.cascade import SharedPrompts
from grpo_mm.pipelines.vlm.forwards.flex import FlexPrompts
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.forwards.prefix_attention import AnswerCache, Layer, PromptCache, States, keys_held, sees


@dataclass(frozen=True)
class Text:
    """Tokens after those of a context."""

    context: int
    """Its place among those that were read."""
    ids_T: Tensor
    position_3T: Tensor


@dataclass(frozen=True)
class Read:
    """What was read before: keys and values of every layer, filled up to the longest context, or its states, and the contexts'
    lengths."""

    layers: tuple[Layer, ...]
    length_c: tuple[int, ...]

    @property
    def longest(self) -> int:
        return keys_held(self.layers)


@dataclass(frozen=True)
class Lines:
    """A line of tokens for each context, or for each text."""

    context_b: Tensor
    ids_bT: Tensor
    position_3bT: Tensor
    row_bT: Tensor
    """Which text each token is of, -1 for fill."""
    spans: tuple[tuple[int, int, int], ...]
    """Of each text: its line, and where it starts and ends there."""

    def filled_up(self, tokens: int) -> Lines:
        """To so many tokens a line."""
        more = (0, tokens - self.ids_bT.shape[1])
        return replace(
            self,
            ids_bT=pad(self.ids_bT, more),
            position_3bT=pad(self.position_3bT, more),
            row_bT=pad(self.row_bT, more, value=-1),
        )


def lay_out(texts: Sequence[Text], *, contexts: int, one_text_each: bool) -> Lines:
    """Texts of a context one after the other, or `one_text_each` line; filled up on the right."""
    numbers = range(len(texts))
    held = (
        [[n] for n in numbers]
        if one_text_each
        else [[n for n in numbers if texts[n].context == c] for c in range(contexts)]
    )
    widest = max((sum(len(texts[n].ids_T) for n in line) for line in held), default=0)
    ids_bT = torch.zeros(len(held), widest, dtype=torch.int64)
    position_3bT = torch.zeros(3, len(held), widest, dtype=torch.int64)
    row_bT = torch.full((len(held), widest), -1)
    spans: dict[int, tuple[int, int, int]] = {}
    for number, line in enumerate(held):
        start = 0
        for n in line:
            end = start + len(texts[n].ids_T)
            ids_bT[number, start:end], position_3bT[:, number, start:end] = texts[n].ids_T, texts[n].position_3T
            row_bT[number, start:end] = n
            spans[n] = (number, start, end)
            start = end
    context_b = torch.tensor([texts[line[0]].context if one_text_each else number for number, line in enumerate(held)])
    return Lines(context_b, ids_bT, position_3bT, row_bT, tuple(spans[n] for n in numbers))


def after(
    network: Network, read: Read, texts: Sequence[Text], *, kept: PromptCache | None = None
) -> tuple[Tensor, Lines]:
    """Hidden states [b, T, D] of texts that see what their context holds, and themselves; and how they were laid out.

    Args:
        kept: where the keys and values of the texts are put down, in the same layout.
    """
    kind = network.attention
    lines = lay_out(
        texts, contexts=len(read.length_c), one_text_each=network.recurrent or one_text_each(kind, read.length_c, texts)
    )
    if not lines.ids_bT.shape[1]:
        return torch.zeros(*lines.ids_bT.shape, 0, device=network.device), lines
    if network.recurrent:
        lines = lines.filled_up(max(2, lines.ids_bT.shape[1]))  # some kernels for a single token have no backward pass
    if network.cut_over is not None:
        lines = lines.filled_up(network.cut_over.filled(lines.ids_bT.shape[1]))
    if kind in (cascade.NAME, flex.NAME):
        made = SharedPrompts if kind == cascade.NAME else FlexPrompts
        shared = made.of(read.layers, lines.row_bT, read.length_c)
        hidden_bTD, _ = network.language(lines.ids_bT, lines.position_3bT, shared_prompts=shared, cache=kept)
        return hidden_bTD, lines
    # Flash attention aligns the causal mask with the last key, which is all that a line of one text needs.
    mask = None if kind.startswith("flash") else _mask(network, lines, read)
    cache = AnswerCache(read.layers, lines.context_b.to(network.device), kept)
    hidden_bTD, _ = network.language(lines.ids_bT, lines.position_3bT, mask=mask, cache=cache)
    return hidden_bTD, lines


def one_text_each(kind: str, length_c: Sequence[int], texts: Sequence[Text]) -> bool:
    """Whether a text has a line of its own, with a copy of its context's keys and values: where attention takes no mask, or
    where most of a mask over all texts of a context would be empty."""
    if kind in (cascade.NAME, flex.NAME) or kind.startswith("flash"):
        return kind.startswith("flash")
    together, apart = 0, 0
    for c, length in enumerate(length_c):
        own = [len(text.ids_T) for text in texts if text.context == c]
        together += sum(own) * (length + sum(own))
        apart += sum(tokens * (length + tokens) for tokens in own)
    return together > 2 * apart


def _mask(network: Network, lines: Lines, read: Read) -> Any:
    length_b = torch.tensor(read.length_c)[lines.context_b]
    mask = sees(lines.row_bT.to(network.device), length_b.to(network.device), longest=read.longest)
    if network.attention != "eager":
        return mask
    scores = next(layer for layer in read.layers if not isinstance(layer, States))[0].dtype
    return torch.zeros(mask.shape, dtype=scores, device=mask.device).masked_fill(~mask, torch.finfo(scores).min)
