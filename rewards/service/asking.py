"""Asking a server of rewards: tries, pauses, a deadline, and a sentence for what went wrong for good."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, plain, reason, shown
from grpo_mm.processes.clock import count
from grpo_mm.processes.services import NotUp, address_of, is_named

MOST_BYTES = 2**26
"""Of an answer."""
LONGEST_PAUSE = 5.0
"""Seconds between tries."""
FIRST_PAUSE = 0.1
BUSY = (408, 429, 502, 503, 504)
"""Statuses that pass: they are no failure of what was asked."""
log = logging.getLogger(__name__)


class Unanswered(Exception):
    """Why there is no answer, for good. `too_long`: half of the rows may be answered."""

    def __init__(self, why: str, *, too_long: bool = False) -> None:
        super().__init__(why)
        self.too_long = too_long


@dataclass(frozen=True)
class Server:
    """Where a server is, and how long it is asked."""

    url: str
    token: str | None
    retries: int
    until: float
    """time.monotonic(), after which nothing is tried again."""
    seconds: float
    """How long that is from the beginning, for the message."""

    async def get(self, client: Any, path: str) -> Any:
        """The JSON of an answer with status 200; raises Unanswered."""
        return await self._tried(client, "GET", path, None)

    async def post(self, client: Any, path: str, body: Mapping[str, Any]) -> Any:
        """As `get`."""
        content = await asyncio.to_thread(lambda: json.dumps(body, allow_nan=False).encode())
        return await self._tried(client, "POST", path, content)

    async def _tried(self, client: Any, method: str, path: str, content: bytes | None) -> Any:
        failures, pause, last, told = 0, FIRST_PAUSE, "", False
        while True:
            left = self.until - time.monotonic()
            if left <= 0:
                raise Unanswered(
                    f"{self.url} gave no answer within {self.seconds:g} seconds" + (f": {last}" if last else "")
                )
            try:
                async with asyncio.timeout(left):
                    found, last, counts = await self._try(client, method, path, content)
            except TimeoutError:
                last = last or "it is there and does not answer"
                continue
            if not last:
                return found
            failures += counts
            if counts:
                count("remote_repeats", 1)
            if failures > self.retries:
                raise Unanswered(f"{self.url} failed {failures} times, the last time so: {last}")
            if not told:
                log.warning("%s: %s; it is asked again for up to %.0f s", self.url, last, max(0.0, left))
                told = True
            await asyncio.sleep(max(0.0, min(pause, self.until - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _try(self, client: Any, method: str, path: str, content: bytes | None) -> tuple[Any, str, bool]:
        """(the answer, why there is none, whether that counts as a failure: a server that is away or busy is waited for)."""
        import httpx2

        try:
            where = f"{address_of(self.url).rstrip('/')}/{path}"  # a service may be back elsewhere
            async with client.stream(method, where, content=content) as response:
                text = await _read(response)
        except NotUp as error:
            return None, str(error), False
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return None, f"it cannot be reached ({reason(error, 100)})", False
        except httpx2.HTTPError as error:
            return None, f"the connection was lost ({reason(error, 100)})", True
        said = f"status {response.status_code}: {plain(_sentence(text), 500)}"
        if response.status_code == 413:
            raise Unanswered(f"{self.url}: {said}", too_long=True)
        if response.status_code in BUSY:
            return None, said, False
        if response.status_code >= 500:
            return None, said, True
        if response.status_code == 401:
            raise Unanswered(f"{self.url} refuses the token (token_env): {said}")
        if response.status_code != 200:
            raise Unanswered(f"{self.url} refuses what it is asked: {said}")
        try:
            return parse_json(text), "", False
        except BadJson as error:
            return None, f"it answered no JSON ({error.reason})", True


async def _read(response: Any) -> str:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Unanswered(f"it answered more than {MOST_BYTES} bytes")
    return bytes(body).decode("utf-8", "replace")


def _sentence(text: str) -> str:
    try:
        return str(parse_json(text)["error"])
    except (BadJson, LookupError, TypeError):
        return text


def client_of(url: str, token: str | None, most: int) -> Any:
    """An asynchronous HTTP client for up to `most` requests at once; no redirect is followed, another host would get the token."""
    import httpx2

    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    return httpx2.AsyncClient(
        headers=headers | ({"Authorization": f"Bearer {token}"} if token else {}),
        timeout=None,  # the deadline limits the whole
        verify=url.startswith("https:"),  # else certificates would be read for nothing, a tenth of a second each time
        limits=httpx2.Limits(max_connections=most),
        follow_redirects=False,
    )


def check_url(url: str) -> None:
    """Raises ConfigError for what is no http address; what may hold a secret is not repeated."""
    told = re.sub(r"//[^/]*@", "//***@", re.sub(r"[?#].*", "?***", url, flags=re.DOTALL))
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigError(f"remote: url = {shown(told)} is no address: its host or port cannot be read.") from None
    if is_named(url) and parts.hostname:
        return
    if parts.username or parts.password:
        raise ConfigError("remote: url holds a user name or a password, which a run folder would show; use token_env.")
    wrong = parts.scheme not in ("http", "https") or not parts.hostname or set(url) & set(" \t\n")
    if wrong or parts.query or parts.fragment:
        raise ConfigError(f"remote: url = {shown(told)}, wanted the like of http://host:8420.")
