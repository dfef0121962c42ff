"""Contexts of prompts that will be asked soon, made beside what the main thread does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from grpo_mm.pipelines.vlm.prompting.contexts import Context, Encoder
from grpo_mm.processes.clock import phase
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class _Announced:
    prompt: Prompt
    """Kept, so that its id stays its own."""
    context: Future[Context]
    call: int


class EncodedAhead:
    """An `Encoder` that works ahead: `announce` begins, a call takes what is made or makes it.

    Media are opened by several threads at once; the processor, whose tokenizer serves one thread at a time, by one after the
    other. A context is a function of its prompt alone, so when it is made changes nothing; what cannot be made fails at the call.

    Example: ahead = EncodedAhead(encoder, workers=2); ahead.announce(prompts); context = ahead(prompts[0])
    """

    def __init__(self, encode: Encoder, *, workers: int) -> None:
        """workers: threads; 0: nothing is made before it is asked for."""
        self.encoder, self._workers = encode, workers
        self._one_at_a_time = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: dict[int, _Announced] = {}
        self._calls = 0

    def __call__(self, prompt: Prompt) -> Context:
        """As the encoder; a context that was announced is handed out once."""
        announced = self._waiting.pop(id(prompt), None)
        if announced is not None:
            return announced.context.result()
        return self.encoder(prompt, turn=self._one_at_a_time)

    def announce(self, prompts: Sequence[Prompt]) -> None:
        """Begins with these very objects, in this order. What was announced before the last time and not taken is let go."""
        self._calls += 1
        for key, old in list(self._waiting.items()):
            if old.call < self._calls - 1:
                old.context.cancel()
                del self._waiting[key]
        if self._workers and prompts:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="grpo_mm-encode")
            for prompt in prompts:
                self._waiting[id(prompt)] = _Announced(prompt, self._threads.submit(self._made, prompt), self._calls)

    def _made(self, prompt: Prompt) -> Context:
        with torch.no_grad(), phase("encode_ahead"):
            return self.encoder(prompt, turn=self._one_at_a_time)
