"""The prompt goes through the language model once, its answers attend to it and to themselves.

    c contexts   n rows   L prompt tokens   T answer tokens of a context, those of all its rows in one line   D width

The forward, and with it the gradient, is that of rows which repeat the prompt (arXiv:2506.05433, grade [A]). Deviates: the
published method has one graph for a prompt and all its answers. Here answers that do not fit in memory go through in parts,
each with its own backward pass; gradients add up in the prompt's keys and values, and one backward pass takes them through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from grpo_mm.pipelines.vlm.forwards.lines import Lines, Read, Text, after
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.forwards.prefix_attention import Layer, PromptCache, States, each
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.prompting.record import TextRecord
from grpo_mm.pipelines.vlm.prompting.shared_media import Root, roots


@dataclass(frozen=True)
class Prompts:
    """Contexts that the language model has read: all that their answers need of them."""

    contexts: tuple[Context, ...]
    layers: tuple[Layer, ...]
    last_cD: Tensor
    """Hidden state of each prompt's last token, which the first token of every answer is drawn from."""

    def tensors(self) -> list[Tensor]:
        return [self.last_cD, *(tensor for layer in self.layers for tensor in layer)]

    def cut_off(self) -> Prompts:
        """The same values as leaves of a graph: gradients stop here, see `Accumulated`."""
        layers = tuple(each(layer, lambda tensor: tensor.detach().requires_grad_()) for layer in self.layers)
        return replace(self, layers=layers, last_cD=self.last_cD.detach().requires_grad_())

    def only(self, contexts: Sequence[Context]) -> Prompts:
        """Some of the contexts, in the order given."""
        if tuple(contexts) == self.contexts:
            return self
        here = [self.contexts.index(context) for context in contexts]
        longest = max(len(context) for context in contexts)

        def chosen(layer: Layer) -> Layer:
            if isinstance(layer, States):
                return each(layer, lambda tensor: tensor[here])
            return each(layer, lambda tensor: tensor[here, :, :longest])

        layers = tuple(map(chosen, self.layers))
        return Prompts(tuple(contexts), layers, self.last_cD[here])


def read_prompts(network: Network, contexts: Sequence[Context]) -> Prompts:
    """Contexts through the language model, filled up on the right; what several have in common goes through once. Where layers carry
    a state, which must not meet fill, each context by itself."""
    if network.recurrent:
        return read_each(network, contexts)
    begun = roots(contexts)
    found = [read_each(network, [root.contexts[0] for root in begun if not root.length])]
    found += [_read_after_root(network, root) for root in begun if root.length]
    return _joined([prompts for prompts in found if prompts.contexts]).only(contexts)


def read_each(network: Network, contexts: Sequence[Context]) -> Prompts:
    """Every context through the language model from its first token."""
    if not contexts:
        return Prompts((), (), torch.zeros(0))
    if network.recurrent and len(contexts) > 1:
        return _joined([read_each(network, [context]) for context in contexts])
    cache = PromptCache()
    hidden_cLD, _ = network.hidden(contexts, cache=cache)
    last_c = torch.tensor([len(context) - 1 for context in contexts], device=hidden_cLD.device)
    last_cD = hidden_cLD[torch.arange(len(contexts), device=hidden_cLD.device), last_c]
    return Prompts(tuple(contexts), cache.in_order(), last_cD)


def _read_after_root(network: Network, root: Root) -> Prompts:
    """The media and what else the contexts begin with, then the rest of each."""
    begun, kept, length = PromptCache(), PromptCache(), root.length
    network.hidden(root.contexts[:1], first=length, cache=begun)
    rests = [Text(0, context.input_ids_L[length:], context.position_3L[:, length:]) for context in root.contexts]
    hidden_bTD, lines = after(network, Read(begun.in_order(), (length,)), rests, kept=kept)
    last_cD = torch.stack([hidden_bTD[line, end - 1] for line, _, end in lines.spans])
    layers = tuple(
        tuple(_with_rests(*parts, lines) for parts in zip(before, rest))
        for before, rest in zip(begun.in_order(), kept.in_order())
    )
    return Prompts(root.contexts, layers, last_cD)


def _with_rests(root_1hLd: Tensor, rest_bhTd: Tensor, lines: Lines) -> Tensor:
    """Keys or values of whole contexts, [c, heads, longest, width of a head]."""
    whole = [torch.cat([root_1hLd[0], rest_bhTd[line, :, start:end]], dim=1) for line, start, end in lines.spans]
    return _stacked(whole)


def _stacked(parts_hLd: Sequence[Tensor]) -> Tensor:
    longest = max(part.shape[1] for part in parts_hLd)
    return torch.stack([pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts_hLd])


def _joined(prompts: Sequence[Prompts]) -> Prompts:
    if len(prompts) == 1:
        return prompts[0]
    layers = tuple(map(_layers_joined, zip(*(one.layers for one in prompts))))
    return Prompts(tuple(c for one in prompts for c in one.contexts), layers, torch.cat([p.last_cD for p in prompts]))


def _layers_joined(layers: Sequence[Layer]) -> Layer:
    """Of several prompts."""
    if isinstance(layers[0], States):
        return States(*map(torch.cat, zip(*layers)))
    keys, values = (_stacked([row for part in parts for row in part]) for parts in zip(*layers))
    return keys, values


def answer_hidden(network: Network, prompts: Prompts, record: TextRecord) -> Tensor:
    """The hidden state that each answer token is drawn from, [ΣL, D], row by row.

    The first token of a row comes from the prompt; the others from the tokens before them, which are all that goes through
    the network here: L - 1 of a row, with fill only where contexts differ in their number of tokens.
    """
    place = {context: number for number, context in enumerate(prompts.contexts)}
    rows = [row for row, length in enumerate(record.length_N.tolist()) if length]
    contexts = [record.contexts[c] for c in record.context_N[rows].tolist()]
    texts = [
        Text(place[context], record.token_NA[row, :more], context.response_positions(more))
        for context, row, more in zip(contexts, rows, (record.length_N[rows] - 1).tolist())
    ]
    hidden_bTD, lines = after(network, Read(prompts.layers, tuple(len(c) for c in prompts.contexts)), texts)
    if not hidden_bTD.shape[1]:
        return prompts.last_cD[[text.context for text in texts]]
    known_XD = torch.cat([prompts.last_cD, hidden_bTD.flatten(0, 1)])
    start, wide = len(prompts.contexts), hidden_bTD.shape[1]
    source = [
        torch.tensor([text.context, *(start + line * wide + at for at in range(first, end))])
        for text, (line, first, end) in zip(texts, lines.spans)
    ]
    return known_XD[torch.cat(source).to(known_XD.device)]


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
