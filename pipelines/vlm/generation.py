"""Drawing answers token by token: what a sampler is asked, and the reference one on the model that is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo_mm.clock import phase
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.contexts import Context
from grpo_mm.pipelines.vlm.network import Network
from grpo_mm.pipelines.vlm.packing import pack
from grpo_mm.pipelines.vlm.shared_forward import read_each, read_prompts
from grpo_mm.pipelines.vlm.shared_media import roots


@dataclass(frozen=True)
class Request:
    """One answer to draw."""

    context: Context
    stream: torch.Generator | None
    """Where its randomness comes from, its own alone; None: the most probable token each time."""


@dataclass(frozen=True)
class Draw:
    """How answers are drawn; one for all requests of a call."""

    max_new_tokens: int
    stop: frozenset[int]
    """Tokens that end an answer; the one that does is part of it."""
    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class Generated:
    """Answers in the order of the requests."""

    token_NA: Tensor
    """[N, A] int64, A = max_new_tokens; 0 beyond the length."""
    length_N: Tensor
    logprob_NA: Tensor
    """[N, A] float32, of the whole distribution (temperature and forbidden tokens, not top_p); 0 beyond the length."""


class Generator(Protocol):
    """An engine of answers. It must draw from `network.distribution`, see `Generated.logprob_NA`."""

    def check(self) -> None: ...

    def generate(self, network: Network, requests: Sequence[Request], draw: Draw) -> Generated: ...


@dataclass(frozen=True)
class HfGenerator:
    """The reference: transformers' model and key/value cache, a prompt's prefill once for all of its samples, and what prompts
    on the same media begin with once for all of them.

    Every row draws by inverse transform from its own stream, so what it writes does not depend on the rows beside it
    (their number changes logits by rounding, which moves a draw once in about 10⁶ tokens of float32).
    """

    batch: int = 64
    """Rows drawn at once; changes memory and speed."""
    batch_tokens: int | None = None
    """At most so many tokens, prompt and answer of every row at its longest, at once; at least one row goes. None: no
    limit."""

    def check(self) -> None:
        if self.batch < 1 or (self.batch_tokens is not None and self.batch_tokens < 1):
            raise ConfigError(
                f"engine.generator: batch = {self.batch}, batch_tokens = {self.batch_tokens}; wanted 1 or more."
            )

    @torch.no_grad()
    def generate(self, network: Network, requests: Sequence[Request], draw: Draw) -> Generated:
        shape = (len(requests), draw.max_new_tokens)
        token_NA, logprob_NA = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        length_N = torch.zeros(shape[0], dtype=torch.int64)
        for rows in self._batches(requests, draw):
            with phase("rollout_network"):
                tokens, logprobs, lengths = _draw_batch(network, [requests[i] for i in rows], draw)
            token_NA[rows], logprob_NA[rows], length_N[rows] = tokens, logprobs, lengths
        inside_NA = torch.arange(draw.max_new_tokens) < length_N[:, None]
        return Generated(token_NA.where(inside_NA, 0), length_N, logprob_NA.where(inside_NA, 0))

    def _batches(self, requests: Sequence[Request], draw: Draw) -> Iterator[list[int]]:
        """Rows with the same context beside each other, and contexts that begin alike."""
        found = roots([request.context for request in requests])
        place = {context: i for i, context in enumerate(c for root in found for c in root.contexts)}
        order = sorted(range(len(requests)), key=lambda i: place[requests[i].context])
        lengths = [len(requests[i].context) + draw.max_new_tokens for i in order]
        for run in pack(lengths, most=self.batch, most_tokens=self.batch_tokens):
            yield [order[i] for i in run]


def _draw_batch(network: Network, requests: Sequence[Request], draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens [n, A], log-probabilities [n, A], lengths [n]) on the CPU."""
    n, device = len(requests), network.device
    with phase("prefill_network"):
        hidden_nD, cache, mask_nK = _prefill(network, [request.context for request in requests])
    start_n = torch.stack([request.context.response_positions(1)[0, 0] for request in requests])
    uniform_nA = torch.stack([_uniforms(request.stream, draw.max_new_tokens) for request in requests]).to(device)
    greedy_n = torch.tensor([request.stream is None for request in requests], device=device)
    stop = torch.tensor(sorted(draw.stop), device=device)
    tokens = torch.zeros(n, draw.max_new_tokens, dtype=torch.int64)
    logprobs, lengths = torch.zeros(n, draw.max_new_tokens), torch.full((n,), draw.max_new_tokens)
    live = torch.arange(n)  # rows of the batch that are still in the cache
    for t in range(draw.max_new_tokens):
        logprob_nV = network.distribution.logprobs(network.logits(hidden_nD), temperature=draw.temperature)
        here = live.to(device)
        token_n = pick(logprob_nV, uniform_nA[here, t], greedy_n[here], top_p=draw.top_p)
        tokens[live, t] = token_n.cpu()
        logprobs[live, t] = logprob_nV.gather(-1, token_n[:, None])[:, 0].cpu()
        ended = torch.isin(token_n, stop).cpu()
        lengths[live[ended]] = torch.minimum(lengths[live[ended]], torch.tensor(t + 1))
        if t + 1 == draw.max_new_tokens or bool((lengths[live] <= t + 1).all()):
            break
        going = torch.nonzero(lengths[live] > t + 1).flatten()
        if len(going) <= len(live) // 2:  # leaving the cache costs a copy of it
            live, token_n, mask_nK = live[going], token_n[going.to(device)], mask_nK[going.to(device)]
            cache.batch_select_indices(going.to(device))
        mask_nK = torch.cat([mask_nK, mask_nK.new_ones(len(live), 1)], dim=1)
        position_3n1 = (start_n[live] + t).expand(3, -1)[..., None]
        out, cache = network.language(token_n[:, None], position_3n1, mask=mask_nK, cache=cache, use_cache=True)
        hidden_nD = out[:, -1]
    return tokens, logprobs, lengths


def _prefill(network: Network, contexts: Sequence[Context]) -> tuple[Tensor, Any, Tensor]:
    """(hidden states that the first tokens are drawn from [n, width], the cache, which of its keys exist [n, L])."""
    from transformers import DynamicCache

    prompts = (
        read_prompts(network, list(dict.fromkeys(contexts))) if network.shares_prefill else read_each(network, contexts)
    )
    cache = DynamicCache(prompts.layers, config=network.model.config)
    length_c = torch.tensor([len(context) for context in prompts.contexts], device=network.device)
    mask_cL = torch.arange(int(length_c.max()), device=network.device) < length_c[:, None]
    if prompts.contexts == tuple(contexts):
        return prompts.last_cD, cache, mask_cL
    place_n = torch.tensor([prompts.contexts.index(context) for context in contexts], device=network.device)
    cache.batch_select_indices(place_n)
    return prompts.last_cD[place_n], cache, mask_cL[place_n]


def _uniforms(stream: torch.Generator | None, number: int) -> Tensor:
    """[A] float64 in [0, 1)."""
    if stream is None:
        return torch.zeros(number, dtype=torch.float64)
    return torch.rand(number, generator=stream, dtype=torch.float64)


def pick(logprob_nV: Tensor, uniform_n: Tensor, greedy_n: Tensor, *, top_p: float) -> Tensor:
    """The token of each row, [n]: the first at which the cumulative probability exceeds the uniform number.

    `top_p`: only the most probable tokens that together reach it are drawn; the one that crosses it is among them.
    """
    best_n = logprob_nV.argmax(-1)
    if bool(greedy_n.all()):
        return best_n
    probability_nV = logprob_nV.double().exp()
    if top_p < 1:
        ordered_nV, order_nV = probability_nV.sort(-1, descending=True)
        before_nV = ordered_nV.cumsum(-1) - ordered_nV
        probability_nV = torch.zeros_like(ordered_nV).scatter(-1, order_nV, ordered_nV.where(before_nV < top_p, 0))
    total_nV = probability_nV.cumsum(-1)
    drawn_n = torch.searchsorted(total_nV, uniform_n[:, None] * total_nV[:, -1:], right=True)[:, 0]
    # A number that rounding put at the very end belongs to the last token that can be drawn.
    last_n = (probability_nV > 0).long().cumsum(-1).argmax(-1)
    return torch.where(greedy_n, best_n, torch.minimum(drawn_n, last_n))
