"""Requests of several ranks for one reward, scored in one call: whoever asks while another call is under way, or shortly after, is joined."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.rewards.service.scorers import Scorers
from grpo_mm.rewards.service.wire import Asked
from grpo_mm.types import Clips, join_items

ROWS = 256
"""Outputs of one call that several requests share."""
SECONDS = 0.005
"""That a call waits for others; those that come while another call runs are joined anyway."""
Answer = tuple[dict[str, Tensor], list[str]]


class Gone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class _Request:
    asked: Asked
    is_gone: Callable[[], Awaitable[bool]]
    answer: asyncio.Future[Answer]


class Merging:
    """Joins requests for rewards that look at each output alone; those over sets, and requests that say `alone`, have a call each.

    A row's score is that of an unjoined call, bit for bit, where the reward's rows do not depend on each other. Where one joined call
    leaves rows without a score for a reason, the requests of those rows are asked once more, alone: failures and their words are those
    that each would have had by itself, and nobody loses rows to another's.
    """

    def __init__(
        self,
        scorers: Scorers,
        apart: Callable[..., Awaitable[Any]],
        *,
        rows: int = ROWS,
        seconds: float = SECONDS,
    ) -> None:
        """apart: runs what blocks, in a thread. rows: 0 joins nothing."""
        self.scorers, self.apart, self.rows, self.seconds = scorers, apart, rows, seconds
        self.counted: dict[str, Counter[str]] = {}
        """Name -> how many requests, calls and rows there were."""
        self._waiting: dict[str, deque[_Request]] = {}
        self._came: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def scored(self, asked: Asked, is_gone: Callable[[], Awaitable[bool]]) -> Answer:
        """As `Scorers.scored`; raises Gone where nobody waits when its turn comes."""
        name = asked.reward
        request = _Request(asked, is_gone, asyncio.get_running_loop().create_future())
        queue = self._waiting.setdefault(name, deque())
        queue.append(request)
        self._came.setdefault(name, asyncio.Event()).set()
        if len(queue) == 1:
            task = asyncio.create_task(self._work(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await request.answer

    async def _work(self, name: str) -> None:
        """Until nothing waits for this reward; the first of the queue stays in it, so that there is one of us."""
        queue = self._waiting[name]
        while queue:
            try:
                await self._gather(name, queue)
                async with self.scorers.alone(name):
                    requests = await self._next(queue)
                    if requests:
                        await self._answer(name, requests)
            except BaseException as error:  # for who waits; the server is ending, or it is our own mistake
                for request in list(queue):
                    _fail(request, error)
                queue.clear()
                if not isinstance(error, Exception):
                    raise

    async def _gather(self, name: str, queue: deque[_Request]) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.seconds
        if not self._may_join(queue[0]):
            return
        while sum(len(request.asked.prompts) for request in queue) < self.rows and loop.time() < until:
            came = self._came[name]
            came.clear()
            try:
                async with asyncio.timeout(until - loop.time()):
                    await came.wait()
            except TimeoutError:
                return

    def _may_join(self, request: _Request) -> bool:
        about = self.scorers.about()[request.asked.reward]
        return about["scope"] == "output" and not request.asked.alone and len(request.asked.prompts) < self.rows

    async def _next(self, queue: deque[_Request]) -> list[_Request]:
        """Those that the next call answers; they stay in the queue."""
        for request in list(queue):
            if await request.is_gone():
                _fail(request, Gone())
                queue.remove(request)
        if not queue:
            return []
        first, *others = queue
        found, rows = [first], len(first.asked.prompts)
        for other in others if self._may_join(first) else ():
            size = len(other.asked.prompts)
            if self._may_join(other) and rows + size <= self.rows and _alike(first.asked.items, other.asked.items):
                found.append(other)
                rows += size
        return found

    async def _answer(self, name: str, requests: list[_Request]) -> None:
        queue = self._waiting[name]
        try:
            answers = await self._asked(name, [request.asked for request in requests])
            for request, answer in zip(requests, answers):
                if not request.answer.done():
                    request.answer.set_result(answer)
        except Exception as error:
            for request in requests:
                _fail(request, error)
        finally:
            for request in requests:
                queue.remove(request)

    async def _asked(self, name: str, asked: list[Asked]) -> list[Answer]:
        counts = self.counted.setdefault(name, Counter())
        counts.update(requests=len(asked), calls=1, rows=sum(len(one.prompts) for one in asked))
        if len(asked) == 1:
            return [await self.apart(self.scorers.scored, asked[0])]
        scores, errors = await self.apart(self.scorers.scored, joined(asked), float(len(asked)))
        found: list[Answer] = []
        start = 0
        for one in asked:
            rows = slice(start, start + len(one.prompts))
            start = rows.stop
            mine = {part: value[rows].clone() for part, value in scores.items()}
            if errors and bool(mine["score"].isnan().any()):
                counts.update(calls=1, rows=len(one.prompts))
                found.append(await self.apart(self.scorers.scored, one))
            else:
                found.append((mine, []))
        return found


def joined(asked: list[Asked]) -> Asked:
    """One request with the outputs of all, in their order."""
    return Asked(
        asked[0].reward, [prompt for one in asked for prompt in one.prompts], join_items([one.items for one in asked])
    )


def _alike(one: Any, other: Any) -> bool:
    """Whether outputs can stand in one batch."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
        return tensors and one.shape[1:] == other.shape[1:] and one.dtype == other.dtype
    if isinstance(one, Clips) or isinstance(other, Clips):
        return isinstance(one, Clips) and isinstance(other, Clips)
    texts = {isinstance(item, str) for items in (one, other) for item in items}
    ranks = {item.ndim for items in (one, other) for item in items if isinstance(item, torch.Tensor)}
    return len(texts) == 1 and len(ranks) <= 1


def _fail(request: _Request, error: BaseException) -> None:
    if not request.answer.done():
        request.answer.set_exception(error if isinstance(error, Exception) else Gone())
