"""The prompt goes through the language model once, its answers attend to it and to themselves.

    c contexts   n rows   L prompt tokens   T answer tokens of a context, those of all its rows in one line   D width

The forward, and with it the gradient, is that of rows which repeat the prompt (arXiv:2506.05433, grade [A]). Deviates: the
published method has one graph for a prompt and all its answers. Here answers that do not fit in memory go through in parts,
each with its own backward pass; gradients add up in the prompt's keys and values, and one backward pass takes them through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm import cascade
from grpo_mm.pipelines.vlm.cascade import SharedPrompts
from grpo_mm.pipelines.vlm.contexts import Context
from grpo_mm.pipelines.vlm.network import Network
from grpo_mm.pipelines.vlm.prefix_attention import AnswerCache, KeysValues, PromptCache, sees
from grpo_mm.pipelines.vlm.record import TextRecord


@dataclass(frozen=True)
class Prompts:
    """Contexts that the language model has read: all that their answers need of them."""

    contexts: tuple[Context, ...]
    layers: tuple[KeysValues, ...]
    last_cD: Tensor
    """Hidden state of each prompt's last token, which the first token of every answer is drawn from."""

    def tensors(self) -> list[Tensor]:
        return [self.last_cD, *(tensor for layer in self.layers for tensor in layer)]

    def cut_off(self) -> Prompts:
        """The same values as leaves of a graph: gradients stop here, see `Accumulated`."""
        layers = tuple(tuple(tensor.detach().requires_grad_() for tensor in layer) for layer in self.layers)
        return replace(self, layers=layers, last_cD=self.last_cD.detach().requires_grad_())


def read_prompts(network: Network, contexts: Sequence[Context]) -> Prompts:
    """One forward over the prompts alone, filled up on the right."""
    cache = PromptCache()
    hidden_cLD, _ = network.hidden(contexts, cache=cache)
    last_c = torch.tensor([len(context) - 1 for context in contexts], device=hidden_cLD.device)
    layers = tuple(cache.layers[layer] for layer in sorted(cache.layers))
    return Prompts(tuple(contexts), layers, hidden_cLD[torch.arange(len(contexts), device=hidden_cLD.device), last_c])


def answer_hidden(network: Network, prompts: Prompts, record: TextRecord) -> Tensor:
    """The hidden state that each answer token is drawn from, [ΣL, D], row by row.

    The first token of a row comes from the prompt; the others from the tokens before them, which are all that goes through
    the network here: L - 1 of a row, with fill only where contexts differ in their number of tokens.
    """
    kind = network.attention
    lines = _lines(record, prompts.contexts, one_row_each=_one_row_each(kind, record))
    known_XD = prompts.last_cD
    if lines.ids_bT.shape[1]:
        given: dict[str, Any] = {"cache": AnswerCache(prompts.layers, lines.context_b.to(network.device))}
        if kind == cascade.NAME:
            lengths = [len(context) for context in prompts.contexts]
            given = {"shared_prompts": SharedPrompts.of(prompts.layers, lines.row_bT, lengths)}
        elif not kind.startswith(
            "flash"
        ):  # which aligns the causal mask with the last key, all that a line of one row needs
            given["mask"] = _mask(network, lines, prompts)
        hidden_bTD, _ = network.language(lines.ids_bT, lines.position_3bT, **given)
        known_XD = torch.cat([known_XD, hidden_bTD.flatten(0, 1)])
    return known_XD[lines.source_X.to(known_XD.device)]


def _one_row_each(kind: str, record: TextRecord) -> bool:
    """Whether an answer has a line of its own, with a copy of its prompt's keys and values: where attention takes no mask, or
    where most of a mask over all answers of a context would be empty."""
    if kind == cascade.NAME or kind.startswith("flash"):
        return kind != cascade.NAME
    together, apart = 0, 0
    for number, context in enumerate(record.contexts):
        lengths = record.length_N[record.context_N == number]
        together += int(lengths.sum()) * (len(context) + int(lengths.sum()))
        apart += int((lengths * (len(context) + lengths)).sum())
    return together > 2 * apart


def _mask(network: Network, lines: _Lines, prompts: Prompts) -> Tensor:
    length_b = torch.tensor([len(context) for context in prompts.contexts])[lines.context_b]
    longest = prompts.layers[0][0].shape[2]
    mask = sees(lines.row_bT.to(network.device), length_b.to(network.device), longest=longest)
    if network.attention != "eager":
        return mask
    scores = prompts.layers[0][0].dtype
    return torch.zeros(mask.shape, dtype=scores, device=mask.device).masked_fill(~mask, torch.finfo(scores).min)


@dataclass(frozen=True)
class _Lines:
    """Answers laid out for one forward, b lines of T tokens."""

    context_b: Tensor
    ids_bT: Tensor
    position_3bT: Tensor
    row_bT: Tensor
    """The row of each token, -1 for fill."""
    source_X: Tensor
    """[ΣL] where the hidden state of each answer token stands: among c prompts, then the b · T tokens."""


def _lines(record: TextRecord, contexts: Sequence[Context], *, one_row_each: bool) -> _Lines:
    place = {context: number for number, context in enumerate(contexts)}
    lengths = record.length_N.tolist()
    context_N = [place.get(record.contexts[c], -1) for c in record.context_N.tolist()]
    rows = [row for row, length in enumerate(lengths) if length]
    held = [[row] for row in rows] if one_row_each else [[r for r in rows if context_N[r] == c] for c in place.values()]
    widths = [sum(lengths[row] - 1 for row in line) for line in held]
    widest, c = max(widths, default=0), len(contexts)
    ids_bT = torch.zeros(len(held), widest, dtype=torch.int64)
    position_3bT = torch.zeros(3, len(held), widest, dtype=torch.int64)
    row_bT = torch.full((len(held), widest), -1)
    sources: dict[int, Tensor] = {}
    for number, line in enumerate(held):
        start = 0
        for row in line:
            end = start + lengths[row] - 1
            ids_bT[number, start:end] = record.token_NA[row, : end - start]
            position_3bT[:, number, start:end] = contexts[context_N[row]].response_positions(end - start)
            row_bT[number, start:end] = row
            before = c + number * widest + torch.arange(start, end)
            sources[row] = torch.cat([torch.tensor([context_N[row]]), before])
            start = end
    source_X = torch.cat([sources[row] for row in rows]) if rows else torch.zeros(0, dtype=torch.int64)
    context_b = torch.tensor([context_N[line[0]] if line else number for number, line in enumerate(held)])
    return _Lines(context_b, ids_bT, position_3bT, row_bT, source_X)


class Accumulated:
    """Gradients of prompts that were cut off from their graph, added up in float32 over several backward passes."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts, self.leaves = prompts, prompts.cut_off()
        self.totals: list[Tensor | None] = [None] * len(prompts.tensors())

    def add(self) -> None:
        """What the last backward pass left in the leaves."""
        for number, leaf in enumerate(self.leaves.tensors()):
            if leaf.grad is not None:
                total = self.totals[number]
                self.totals[number] = leaf.grad.float() if total is None else total.add_(leaf.grad)
                leaf.grad = None

    def finish(self) -> None:
        """One backward pass through the prompts' graph; none if nothing was added."""
        pairs = [
            (t, g.to(t.dtype)) for t, g in zip(self.prompts.tensors(), self.totals) if g is not None and t.requires_grad
        ]
        if pairs:
            torch.autograd.backward(*zip(*pairs))
