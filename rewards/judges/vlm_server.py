"""Asking a vision-language model behind a server that speaks the OpenAI API."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.processes.clock import count
from grpo_mm.rewards.judges.vlm import Question, at_least_one, picture

logger = logging.getLogger(__name__)


@dataclass
class ServerVlm:
    """A server with the chat completions of the OpenAI API (vLLM, SGLang, llama.cpp, a hosted model).

    Many questions are under way at once. A time-out, a lost connection, a status 408, 429 or 5xx and an answer that is
    no chat completion are tried again after a pause that doubles up to 10 s; other statuses are final. What fails for
    good is None, counted as `calls/vlm_failures`, and the first one is logged. Tokens that the server reports are counted as
    `calls/vlm_prompt_tokens` and `calls/vlm_completion_tokens`.
    """

    base_url: str
    """Up to the version and without "/chat/completions", e.g. http://localhost:8080/v1."""
    model: str
    """The name under which the server offers it."""
    api_key_env: str | None = None
    """The environment variable that holds the key, so that no config does."""
    max_new_tokens: int = 4096
    timeout_seconds: float = 120.0
    """For one try of one question, from connecting to the last byte."""
    retries: int = 4
    backoff_seconds: float = 1.0
    """The first pause."""
    concurrency: int = 32
    """Questions under way at once, from this process."""
    jpeg_quality: int = 95
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request, e.g. {seed: 0}; they replace ours of the same name."""

    def __post_init__(self) -> None:
        at_least_one("server", max_new_tokens=self.max_new_tokens, concurrency=self.concurrency)
        if self.timeout_seconds <= 0 or self.retries < 0 or self.backoff_seconds < 0:
            raise ConfigError(
                f"server: timeout_seconds = {self.timeout_seconds} (wanted above 0), retries = {self.retries} and "
                f"backoff_seconds = {self.backoff_seconds} (wanted 0 or more)."
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"server: jpeg_quality = {self.jpeg_quality}, wanted 1 to 100.")
        self._warned = False

    def check(self) -> None:
        """Raises ConfigError for a malformed address or a key that is not set; does not call the server."""
        check_address(self.base_url)
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise ConfigError(f"api_key_env = {self.api_key_env!r}: no such environment variable, or it is empty.")

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        self.check()
        answers = _run(self._ask_all(questions))
        failures = [answer for answer in answers if isinstance(answer, _Failure)]
        count("vlm_failures", len(failures))
        if failures and not self._warned:
            self._warned = True
            logger.warning(
                "%s: %d of %d questions got no answer; the first: %s",
                self.base_url,
                len(failures),
                len(questions),
                failures[0],
            )
        return [None if isinstance(answer, _Failure) else answer for answer in answers]

    async def _ask_all(self, questions: Sequence[Question]) -> list[str | _Failure]:
        import httpx2

        key = os.environ[self.api_key_env] if self.api_key_env else None
        jpeg_urls = {id(image): self._jpeg_url(image) for question in questions for image in question.images}
        under_way = asyncio.Semaphore(self.concurrency)
        async with httpx2.AsyncClient(
            base_url=self.base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,  # asyncio.timeout limits the whole try, not each read
            limits=httpx2.Limits(max_connections=self.concurrency),
        ) as client:
            tasks = (self._ask_one(client, under_way, question, jpeg_urls) for question in questions)
            return await asyncio.gather(*tasks)

    async def _ask_one(
        self, client: Any, under_way: asyncio.Semaphore, question: Question, jpeg_urls: dict[int, str]
    ) -> str | _Failure:
        failure = _Failure("not asked")
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(min(self.backoff_seconds * 2 ** (attempt - 1), 10.0))
            try:
                async with under_way, asyncio.timeout(self.timeout_seconds):
                    return await self._try(client, self._body(question, jpeg_urls))
            except TimeoutError:
                failure = _Failure(f"no answer within {self.timeout_seconds:g} seconds")
            except _Failure as error:
                failure = error
            if not failure.may_pass:
                break
        return failure

    async def _try(self, client: Any, body: dict[str, Any]) -> str:
        import httpx2

        try:
            response = await client.post("chat/completions", json=body)
        except httpx2.HTTPError as error:
            raise _Failure(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            may_pass = response.status_code in (408, 429) or response.status_code >= 500
            raise _Failure(f"status {response.status_code}: {response.text[:200]}", may_pass=may_pass)
        try:
            completion = response.json()
            answer = completion["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            answer = None
        if not isinstance(answer, str):
            raise _Failure(f"no chat completion: {response.text[:200]}")
        _count_tokens(completion.get("usage"))
        return answer

    def _body(self, question: Question, jpeg_urls: dict[int, str]) -> dict[str, Any]:
        images = [{"type": "image_url", "image_url": {"url": jpeg_urls[id(image)]}} for image in question.images]
        content = [*images, {"type": "text", "text": question.text}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0.0,
            **self.extra_body,
        }

    def _jpeg_url(self, image: Tensor) -> str:
        buffer = io.BytesIO()
        picture(image).save(buffer, format="JPEG", quality=self.jpeg_quality)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """The result, from a thread of its own: the caller's may already run an event loop.

    A daemon, so that a call which was given up does not keep the process alive.
    """
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(work))
        except BaseException as error:  # for the caller to see
            done.set_exception(error)

    threading.Thread(target=run, name="grpo_mm-vlm", daemon=True).start()
    return done.result()


def _count_tokens(usage: Any) -> None:
    """What an answer cost, where the server tells."""
    for name in ("prompt_tokens", "completion_tokens"):
        tokens = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(tokens, int):
            count(f"vlm_{name}", tokens)


class _Failure(Exception):
    def __init__(self, reason: str, *, may_pass: bool = True) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        """Another try may go better."""


def check_address(base_url: str) -> None:
    """Raises ConfigError if it is no http address that chat/completions can be joined to."""
    try:
        parts = urlsplit(base_url)
        _ = parts.port  # raises ValueError for a port that is no number
    except ValueError as error:
        raise ConfigError(f"base_url = {base_url!r} is no address: {error}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or set(base_url) & set(" \t\n"):
        raise ConfigError(f"base_url = {base_url!r}, wanted http://host:port/v1 or https://host/v1.")
    if parts.query or parts.fragment:
        raise ConfigError(f"base_url = {base_url!r}: leave out what follows the path, '?' or '#'.")
    if parts.username or parts.password:
        raise ConfigError("base_url holds a user name or a password, which a run folder would show; use api_key_env.")
    if parts.path.rstrip("/").endswith("/completions"):
        raise ConfigError(f"base_url = {base_url!r}: leave out /chat/completions, it is added.")
