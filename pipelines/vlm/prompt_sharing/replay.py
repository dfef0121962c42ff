"""Log-probabilities of stored tokens under the present weights, with the prompt shared by its answers or repeated for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.forwards.packing import pack, pack_groups
from grpo_mm.pipelines.vlm.prompt_sharing import prefix_cost
from grpo_mm.pipelines.vlm.prompt_sharing.shared_forward import Accumulated, Prompts, answer_hidden, read_prompts
from grpo_mm.pipelines.vlm.prompt_sharing.sharing_check import Values, compare
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.prompting.record import TextRecord
from grpo_mm.pipelines.vlm.prompting.shared_media import roots
from grpo_mm.processes.clock import phase

Sharing = Literal["auto", "on", "off", "check"]
LEAST_GAIN = 1.15
"""Below this `auto` repeats the prompt: the estimate leaves out what two forwards cost more than one."""


class Replay:
    """How rows go through the network again, in forwards that fit in memory.

    Rows share by context, and contexts that begin alike share what they have in common. Where all rows of a context fit in one
    forward, they are one graph with it; else it is read once, and its rows follow in parts, each with a backward pass of its own.
    """

    def __init__(
        self,
        network: Network,
        *,
        sharing: Sharing,
        micro_batch: int,
        micro_batch_tokens: int | None,
        head_chunk: int,
        checkpointing: bool,
    ) -> None:
        self.network, self.sharing = network, sharing
        self.micro_batch, self.micro_batch_tokens, self.head_chunk = micro_batch, micro_batch_tokens, head_chunk
        self.checkpointing = checkpointing
        self._unchecked = {True, False} if sharing == "check" else set()
        token, pair = prefix_cost.layer_costs(network.model.model.language_model)
        self._layer = {"token": token, "pair": pair}

    def shares(self, record: TextRecord) -> bool:
        """Whether prompts are shared. It depends on the whole record, so that all passes over it do alike: two forms differ
        by rounding, which ratios would show."""
        if self.sharing == "auto":
            return prefix_cost.gain(record, **self._layer) >= LEAST_GAIN
        return self.sharing != "off"

    def forwards(self, record: TextRecord, rows: Tensor) -> list[Tensor]:
        """The rows [n] of one training forward each. Rows of a context stand beside each other, and contexts that begin alike."""
        rank = {
            context: place for place, context in enumerate(c for root in roots(record.contexts) for c in root.contexts)
        }
        order_C = torch.tensor([rank[context] for context in record.contexts], dtype=torch.int64)
        rows = rows[torch.argsort(order_C[record.context_N[rows]], stable=True)]
        contexts, answers = record.context_N[rows].tolist(), record.length_N[rows].tolist()
        lengths = [len(record.contexts[c]) for c in contexts]
        most = {"most": self.micro_batch, "most_tokens": self.micro_batch_tokens}
        if not self.shares(record):
            return [rows[run] for run in pack([c + a for c, a in zip(lengths, answers)], **most)]
        groups = [list(places) for _, places in groupby(range(len(rows)), key=contexts.__getitem__)]
        sizes = [(lengths[group[0]], [answers[place] for place in group]) for group in groups]
        apart = self.network.attention.startswith("flash")  # it has no mask for what prompts are filled up with
        return [rows[run] for run in pack_groups(sizes, **most, apart=apart)]

    def values(
        self, record: TextRecord, parts: Sequence[Tensor], *, entropy: bool, grad: bool, charge: str
    ) -> Iterator[Values]:
        """For the rows [n] of each part, in order: log-probabilities and entropies of all tokens, float32 [n, A].

        With `grad` the consumer runs backward before it asks for the next part, and asks until there is none.

        Args:
            charge: the phase that the time belongs to.
        """
        if not self.shares(record):
            for rows in parts:
                with torch.set_grad_enabled(grad), phase(charge):
                    found = self.repeated(record.take(rows), entropy=entropy)
                yield found
            return
        root_C = {context: n for n, root in enumerate(roots(record.contexts)) for context in root.contexts}
        for _, run in groupby(
            parts, key=lambda rows: _single({root_C[context] for context in _contexts(record, rows)})
        ):
            yield from self._shared(record, list(run), entropy=entropy, grad=grad, charge=charge)

    def _shared(
        self, record: TextRecord, parts: Sequence[Tensor], *, entropy: bool, grad: bool, charge: str
    ) -> Iterator[Values]:
        """Of parts whose contexts begin alike, or of a single part."""
        together = record.take(torch.cat(list(parts)))
        if not bool(together.length_N.any()):
            yield from (self._of_no_tokens(record.take(rows), entropy=entropy) for rows in parts)
            return
        with torch.set_grad_enabled(grad), phase(charge), self._computed_again():
            prompts = read_prompts(self.network, _contexts(together))
        apart = Accumulated(prompts) if grad and len(parts) > 1 else None
        for rows in parts:
            part = record.take(rows)
            with torch.set_grad_enabled(grad), phase(charge):
                found = self.shared(apart.leaves if apart else prompts, part, entropy=entropy)
            if grad in self._unchecked:
                self._unchecked.discard(grad)
                with torch.set_grad_enabled(grad):
                    compare(found, self.repeated(part, entropy=entropy), part, self.network, gradients=apart is None)
            yield found
            if apart:
                apart.add()
        if apart:
            with phase(charge):
                apart.finish()

    def shared(self, prompts: Prompts, record: TextRecord, *, entropy: bool) -> Values:
        """Of rows whose contexts have been read."""
        contexts = _contexts(record)
        if not contexts:
            return self._of_no_tokens(record, entropy=entropy)
        with self._computed_again():
            hidden_TD = answer_hidden(self.network, prompts.only(contexts), record)
        return self._of_tokens(hidden_TD, record, entropy=entropy)

    def repeated(self, record: TextRecord, *, entropy: bool) -> Values:
        """Of rows that each read their prompt anew."""
        row_T, at_T = _tokens(record)
        if not row_T.numel():
            return self._of_no_tokens(record, entropy=entropy)
        contexts = [record.contexts[i] for i in record.context_N.tolist()]
        with self._computed_again():
            hidden_nLD, _ = self.network.hidden(contexts, record.token_NA[:, : int(record.length_N.max()) - 1])
        before_T = torch.tensor([len(context) for context in contexts])[row_T] + at_T - 1
        hidden_TD = hidden_nLD[row_T.to(hidden_nLD.device), before_T.to(hidden_nLD.device)]
        return self._of_tokens(hidden_TD, record, entropy=entropy)

    def _of_tokens(self, hidden_TD: Tensor, record: TextRecord, *, entropy: bool) -> Values:
        """Values [n, A] of the hidden states that the answer tokens are drawn from, row by row; 0 beyond a row's end."""
        device = hidden_TD.device
        row_T, at_T = _tokens(record)
        place = (row_T.to(device), at_T.to(device))
        with self.network.cut():
            logprob_T, entropy_T = self.network.token_values(
                hidden_TD, record.token_NA[row_T, at_T].to(device), entropy=entropy, chunk=self.head_chunk
            )
        zero_NA = torch.zeros(record.token_NA.shape, device=device)
        return zero_NA.index_put(place, logprob_T), None if entropy_T is None else zero_NA.index_put(place, entropy_T)

    def _of_no_tokens(self, record: TextRecord, *, entropy: bool) -> Values:
        """Zeros, for prompts that could not be read; the graph still reaches the weights."""
        trained = (p for p in self.network.model.parameters() if p.requires_grad)
        zero_NA = torch.zeros(record.token_NA.shape, device=self.network.device)
        return zero_NA + sum(p.flatten()[:0].float().sum() for p in trained), zero_NA if entropy else None

    @contextmanager
    def _computed_again(self) -> Iterator[None]:
        """With gradient checkpointing layers are computed again in the backward pass, in training mode only, in which
        transformers has no cache to sample with. Tokens are cut over processes, where there are any for it."""
        again = self.checkpointing and torch.is_grad_enabled()
        with self.network.cut():
            if not again:
                yield
                return
            self.network.model.train()
            try:
                yield
            finally:
                self.network.model.eval()


def _tokens(record: TextRecord) -> tuple[Tensor, ...]:
    """(row, place in it) of all answer tokens, row by row."""
    return torch.nonzero(torch.arange(record.token_NA.shape[1]) < record.length_N[:, None], as_tuple=True)


def _contexts(record: TextRecord, rows: Tensor | None = None) -> list[Context]:
    """Those of the rows with an answer, each once."""
    answered_N = record.length_N > 0 if rows is None else torch.zeros(len(record.length_N), dtype=torch.bool)
    if rows is not None:
        answered_N[rows] = record.length_N[rows] > 0
    return [record.contexts[c] for c in record.context_N[answered_N].unique().tolist()]


def _single(found: set[int]) -> object:
    """What parts that follow each other must have in common to share what they read: one root; nothing if they have more."""
    return next(iter(found)) if len(found) == 1 else object()
