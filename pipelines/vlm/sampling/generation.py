"""Drawing answers token by token: what a sampler is asked, and the reference one on the model that is trained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.forwards.packing import pack
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.prompting.shared_media import roots
from grpo_mm.pipelines.vlm.sampling.running import Running, begun
from grpo_mm.processes.clock import phase
from grpo_mm.processes.progress import report


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
    finished: Callable[[int, Tensor], None] | None = None
    """Hears of each answer as it ends, if anybody wants to: the number of its request, and its tokens [length], the one that ends it
    included. A generator that cannot tell on its way leaves it."""


@dataclass(frozen=True)
class Generated:
    """Answers in the order of the requests."""

    token_NA: Tensor
    """[N, A] int64, A = max_new_tokens; 0 beyond the length."""
    length_N: Tensor
    logprob_NA: Tensor
    """[N, A] float32, of the whole distribution (temperature and forbidden tokens, not top_p); 0 beyond the length."""
    entropy_NA: Tensor | None = None
    """[N, A] float32, in nats, of the same distribution at that place; 0 beyond the length, and where nothing is left to chance.
    None: this engine does not tell."""
    prompt_ids: tuple[Tensor, ...] | None = None
    """[L] of each request: the tokens of its prompt as the engine read it, placeholders expanded. None: this engine does not tell."""
    weights: tuple[int, str] | None = None
    """Which weights drew them, as `Snapshots.which`; None: the policy's own, in place."""


class Generator(Protocol):
    """An engine of answers. It must draw from `network.distribution` with the weights that are in place, see `Generated.logprob_NA`.

    Sampler and trainer are compared before a run begins, unless it says `is_the_trainers`: that it draws with the very network that is trained.
    """

    def check(self) -> None: ...

    def generate(self, network: Network, requests: Sequence[Request], draw: Draw) -> Generated: ...


@dataclass(frozen=True)
class HfGenerator:
    """The reference: transformers' model, a prompt's prefill once for all of its samples, and what prompts on the same media
    begin with once for all of them. Rows that end make room for others at once (continuous batching; that of transformers
    5.23 takes no pictures).

    Every row draws by inverse transform from its own stream, so what it writes does not depend on the rows beside it
    (their number changes logits by rounding, which moves a draw once in about 10⁶ tokens of float32).
    """

    batch: int = field(default=64, metadata=FREE)
    """Rows drawn at once; changes memory and speed. Others join when a quarter of the places is free."""
    batch_tokens: int | None = field(default=None, metadata=FREE)
    """At most so many tokens, prompt and answer of every row at its longest, at once; at least one row goes. None: no
    limit."""

    is_the_trainers = tells_top_p = True

    def check(self) -> None:
        if self.batch < 1 or (self.batch_tokens is not None and self.batch_tokens < 1):
            raise ConfigError(
                f"engine.generator: batch = {self.batch}, batch_tokens = {self.batch_tokens}; wanted 1 or more."
            )

    @torch.no_grad()
    def generate(self, network: Network, requests: Sequence[Request], draw: Draw) -> Generated:
        drawing = _Drawing(network, requests, draw)
        length_N = [len(request.context) + draw.max_new_tokens for request in requests]
        waiting = deque(self._units([request.context for request in requests], length_N))
        running: Running | None = None
        while waiting or running is not None:
            with phase("rollout_network"):
                here = [] if running is None else running.row_n[running.live].tolist()
                rows = self._joining(here, waiting, length_N)
                if rows:
                    running = _with(running, begun(
                        network, torch.tensor(rows), [requests[row].context for row in rows],
                        max_new_tokens=draw.max_new_tokens,
                    ))  # fmt: skip
                running = drawing.step(running)
                ended = len(requests) - sum(map(len, waiting)) - (0 if running is None else len(running.live))
                report("texts", ended, len(requests))
                if running is not None and not waiting and 2 * len(running.live) <= len(running.row_n):
                    running = running.only(running.live)
        return drawing.made

    def _units(self, contexts: Sequence[Context], length_N: Sequence[int]) -> Iterator[list[int]]:
        """Rows that join together: all on the same media, or all of a context, or as many of these as fit."""

        rows_of: dict[Context, list[int]] = {}
        for row, context in enumerate(contexts):
            rows_of.setdefault(context, []).append(row)
        for root in roots(contexts):
            groups = [rows_of[context] for context in root.contexts]
            whole = self._packed([row for group in groups for row in group], length_N)
            yield from whole if len(whole) == 1 else (run for group in groups for run in self._packed(group, length_N))

    def _packed(self, rows: Sequence[int], length_N: Sequence[int]) -> list[list[int]]:
        runs = pack([length_N[row] for row in rows], most=self.batch, most_tokens=self.batch_tokens)
        return [[rows[place] for place in run] for run in runs]

    def _joining(self, running: Sequence[int], waiting: deque[list[int]], length_N: Sequence[int]) -> list[int]:
        rows: list[int] = []
        if len(running) > 3 * self.batch // 4:
            return rows
        while waiting:
            if len(self._packed([*running, *rows, *waiting[0]], length_N)) > 1:
                break
            rows += waiting.popleft()
        return rows


def _with(running: Running | None, joining: Running) -> Running:
    return joining if running is None else running.joined(joining)


class _Drawing:
    """Draws a token of every row that is running, and keeps what was drawn."""

    def __init__(self, network: Network, requests: Sequence[Request], draw: Draw) -> None:
        self.network, self.draw = network, draw
        shape = (len(requests), draw.max_new_tokens)
        self.made = Generated(
            torch.zeros(shape, dtype=torch.int64),
            torch.zeros(shape[0], dtype=torch.int64),
            torch.zeros(shape, dtype=torch.float32),
            torch.zeros(shape, dtype=torch.float32),
        )
        self.uniform_NA = torch.zeros(shape, dtype=torch.float64)
        for row, request in enumerate(requests):
            if request.stream is not None:
                self.uniform_NA[row] = torch.rand(draw.max_new_tokens, generator=request.stream, dtype=torch.float64)
        self.greedy_N = torch.tensor([request.stream is None for request in requests])
        self.draws = not bool(self.greedy_N.all())
        self.stop = torch.tensor(sorted(draw.stop), dtype=torch.int64)

    def step(self, running: Running) -> Running | None:
        """The rows that go on, one token further; None if all have ended."""
        live, device = running.live, self.network.device
        here = (running.row_n[live], running.drawn_n[live])
        uniform_n = torch.zeros(len(running.row_n), dtype=torch.float64).index_copy(0, live, self.uniform_NA[here])
        logits_nV = self.network.logits(running.hidden_nD)
        logprob_nV = self.network.distribution.logprobs(logits_nV, temperature=self.draw.temperature)
        token_n = pick(logprob_nV, uniform_n.to(device), self.greedy_N[running.row_n], top_p=self.draw.top_p)
        found = [token_n, logprob_nV.gather(-1, token_n[:, None])[:, 0], *([entropy(logprob_nV)] if self.draws else [])]
        # In one piece, so that a token waits for the device once; float64 holds ids and float32 as they are.
        found = torch.stack([value_n.double() for value_n in found]).cpu()[:, live]
        self.made.token_NA[here] = drawn = found[0].long()
        self.made.logprob_NA[here] = found[1].float()
        if self.draws:
            self.made.entropy_NA[here] = found[2].float()
        self.made.length_N[here[0]] = length = here[1] + 1
        ended = torch.isin(drawn, self.stop) | (length >= self.draw.max_new_tokens)
        if self.draw.finished is not None:
            for row in here[0][ended].tolist():
                self.draw.finished(row, self.made.token_NA[row, : int(self.made.length_N[row])])
        if bool(ended.all()):
            return None
        return running.after(self.network, token_n).without(live[ended])


def entropy(logprob_nV: Tensor) -> Tensor:
    """Of distributions, in nats, [n]; what is forbidden (log-probability -inf) adds nothing."""
    return -(logprob_nV.exp() * logprob_nV.clamp_min(torch.finfo(logprob_nV.dtype).min)).sum(-1)


def pick(logprob_nV: Tensor, uniform_n: Tensor, greedy_n: Tensor, *, top_p: float) -> Tensor:
    """The token of each row, [n]: the first at which the cumulative probability exceeds the uniform number.

    `top_p`: only the most probable tokens that together reach it are drawn; the one that crosses it is among them. `greedy_n`, on
    the CPU: rows that take the most probable token.
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
    drawn_n = torch.minimum(drawn_n, last_n)
    return torch.where(greedy_n.to(best_n.device), best_n, drawn_n) if bool(greedy_n.any()) else drawn_n
