"""Asking a vision-language model behind a server that speaks the OpenAI API."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.outside import reason, shown
from grpo_mm.processes.clock import count
from grpo_mm.rewards.judges.chat_completion import NoAnswer, hidden, read_completion, read_text, status_failure
from grpo_mm.rewards.judges.vlm import Question, at_least_one, picture
from grpo_mm.rewards.shared.run_apart import run_apart

logger = logging.getLogger(__name__)


@dataclass
class ServerVlm:
    """A server with the chat completions of the OpenAI API (vLLM, SGLang, llama.cpp, a hosted model).

    Many questions are under way at once. A time-out, a lost connection, a status 408, 429 or 5xx and an answer that is
    no chat completion are tried again after a pause that doubles up to 10 s, or that the server asks for, up to 60 s; other
    statuses are final, redirects among them, and so is an answer of more than 1 MiB. What fails for good is None, counted as
    `calls/vlm_failures`, and the first one is logged. Tokens that the server reports are counted as `calls/vlm_prompt_tokens`
    and `calls/vlm_completion_tokens`, answers that were cut off at `max_new_tokens` as `calls/vlm_cut_off`. Whatever a server
    sends back, the key is in no message, answer or file.
    """

    shares_calls: ClassVar[bool] = True
    """Each question is a request of its own, whoever asks it and when."""

    base_url: str
    """Up to the version and without "/chat/completions", e.g. http://localhost:8080/v1."""
    model: str
    """The name under which the server offers it."""
    api_key_env: str | None = field(default=None, metadata=FREE)
    """The environment variable that holds the key, so that no config does."""
    max_new_tokens: int = 4096
    """Longest answer, in tokens."""
    timeout_seconds: float = field(default=120.0, metadata=FREE)
    """For one try of one question, from connecting to the last byte."""
    retries: int = field(default=4, metadata=FREE)
    """Further tries of a question after a failure that may pass."""
    backoff_seconds: float = field(default=1.0, metadata=FREE)
    """The first pause."""
    concurrency: int = field(default=32, metadata=FREE)
    """Questions under way at once, from this process."""
    jpeg_quality: int = 95
    """Of the pictures that are sent, 1 to 100."""
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
        if self.api_key_env is None:
            return
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ConfigError(f"api_key_env = {self.api_key_env!r}: no such environment variable, or it is empty.")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"api_key_env = {self.api_key_env!r}: the variable holds a blank, a line end or what is not ASCII, which no key has."
            )

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        self.check()
        answers = run_apart(self._ask_all(questions))
        failures = [answer for answer in answers if isinstance(answer, NoAnswer)]
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
        return [None if isinstance(answer, NoAnswer) else answer for answer in answers]

    async def _ask_all(self, questions: Sequence[Question]) -> list[str | NoAnswer]:
        import httpx2

        key = os.environ[self.api_key_env] if self.api_key_env else None
        jpeg_urls = {id(image): self._jpeg_url(image) for question in questions for image in question.images}
        under_way = asyncio.Semaphore(self.concurrency)
        async with httpx2.AsyncClient(
            base_url=self.base_url.rstrip("/") + "/",
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=None,  # asyncio.timeout limits the whole try, not each read
            limits=httpx2.Limits(max_connections=self.concurrency),
            follow_redirects=False,  # another host would get pictures and key
        ) as client:
            tasks = (self._ask_one(client, under_way, question, jpeg_urls, key) for question in questions)
            return await asyncio.gather(*tasks)

    async def _ask_one(
        self,
        client: Any,
        under_way: asyncio.Semaphore,
        question: Question,
        jpeg_urls: dict[int, str],
        key: str | None,
    ) -> str | NoAnswer:
        failure = NoAnswer("not asked")
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(max(min(self.backoff_seconds * 2 ** (attempt - 1), 10.0), failure.pause))
            try:
                async with under_way, asyncio.timeout(self.timeout_seconds):
                    return await self._try(client, self._body(question, jpeg_urls), key)
            except TimeoutError:
                failure = NoAnswer(f"no answer within {self.timeout_seconds:g} seconds")
            except NoAnswer as error:
                failure = error
            except Exception as error:  # one bad answer must not cost the others theirs
                failure = NoAnswer(hidden(reason(error), key), may_pass=False)
            if not failure.may_pass:
                break
        return failure

    async def _try(self, client: Any, body: dict[str, Any], key: str | None) -> str:
        import httpx2

        try:
            async with client.stream("POST", "chat/completions", json=body) as response:
                text = await read_text(response, key)
        except httpx2.HTTPError as error:
            raise NoAnswer(hidden(reason(error), key)) from error
        if response.status_code != 200:
            raise status_failure(response.status_code, response.headers, text)
        answer, tokens, cut_off = read_completion(text)
        for name, number in tokens.items():
            count(f"vlm_{name}", number)
        if cut_off:
            count("vlm_cut_off", 1)
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


def check_address(base_url: str) -> None:
    """Raises ConfigError if it is no http address that chat/completions can be joined to.

    What may hold a secret (a name and password, what follows '?' or '#') is not repeated.
    """
    told = re.sub(r"//[^/]*@", "//***@", re.sub(r"[?#].*", "?***", base_url, flags=re.DOTALL))
    try:
        parts = urlsplit(base_url)
        _ = parts.port  # raises ValueError for a port that is no number
    except ValueError:
        raise ConfigError(f"base_url = {shown(told)} is no address: its host or port cannot be read.") from None
    if parts.username or parts.password:
        raise ConfigError("base_url holds a user name or a password, which a run folder would show; use api_key_env.")
    if parts.scheme not in ("http", "https") or not parts.hostname or set(base_url) & set(" \t\n"):
        raise ConfigError(f"base_url = {shown(told)}, wanted http://host:port/v1 or https://host/v1.")
    if parts.query or parts.fragment:
        raise ConfigError(f"base_url = {shown(told)}: leave out what follows the path, '?' or '#'.")
    if parts.path.rstrip("/").endswith("/completions"):
        raise ConfigError(f"base_url = {shown(told)}: leave out /chat/completions, it is added.")
