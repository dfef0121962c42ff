"""The web application that serves rewards: who may ask, how much, and what comes back; what it holds is in `scorers`."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, plain, shown
from grpo_mm.rewards.service.merging import ROWS, SECONDS, Gone, Merging
from grpo_mm.rewards.service.png import Pixels, Refused
from grpo_mm.rewards.service.scorers import Scorers
from grpo_mm.rewards.service.wire import Asked, pack_answer, read_request

MOST_VALUES = 2_000_000
"""Commas and brackets of a request: what its JSON may become in memory, which its length alone does not bound."""
HELD = 16
"""Times the largest request that those under way may have together; more are told to come again."""
DECODED = 8
"""Bytes of pictures for each byte that a request may have."""
AGAIN_SECONDS = 1
LONGEST_REQUEST_SECONDS = 60.0
"""For a request to arrive whole."""


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    bytes: int
    """Of its body."""
    picture_pixels: int = 2**25
    """Of one picture."""
    seconds: float = 600.0
    """Of one call of a reward without a limit of its own."""

    @property
    def pixels(self) -> int:
        """Of all pictures of a request together."""
        return DECODED * self.bytes // 3


class _Declined(Exception):
    """A request that is not answered with scores."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


def check_host(host: str, token: str | None) -> None:
    """Raises ConfigError where anybody else than this machine could ask without a token."""
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"host {shown(host)} can be reached by others, and there is no token: set the environment variable that --token-env names, "
            "or serve 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def application(
    scorers: Scorers,
    *,
    limits: Limits,
    token: str | None,
    versions: Mapping[str, str],
    lifespan: Any = None,
    gather_rows: int = ROWS,
    gather_seconds: float = SECONDS,
) -> Any:
    """GET /health, POST /score and POST /applies as an ASGI application. `gather_…`: as of `Merging`."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    bodies, reading = _Bodies(limits.bytes), asyncio.Semaphore(2)
    merging = Merging(scorers, _apart, rows=gather_rows, seconds=gather_seconds)

    async def health() -> dict[str, Any]:
        sizes = {"bytes": limits.bytes, "picture_pixels": limits.picture_pixels, "seconds": limits.seconds}
        asked = {name: dict(counts) for name, counts in merging.counted.items()}
        return {"rewards": scorers.about(), "versions": dict(versions), "limits": sizes, "asked": asked}

    async def answered(request: Request, *, applies: bool) -> Any:
        async with bodies.read(request) as body:
            async with reading:
                asked = await _apart(_read, body, limits, applies)
            del body
            if asked.reward not in scorers:
                raise _Declined(
                    404, f"no reward {shown(asked.reward, 80)} is served; there are {', '.join(scorers.about())}."
                )
            try:
                if not applies:
                    _check_groups(asked, scorers)
                    found = await merging.scored(asked, request.is_disconnected)
                    return JSONResponse(await _apart(pack_answer, *found))
                async with scorers.alone(asked.reward):
                    if await request.is_disconnected():
                        raise Gone
                    return JSONResponse({"applies": await _apart(scorers.applied, asked)})
            except Gone:
                raise _Declined(499, "nobody waits for the answer") from None

    async def score(request: Request) -> Any:
        return await answered(request, applies=False)

    async def applies(request: Request) -> Any:
        return await answered(request, applies=True)

    async def declined(_: Request, error: Exception) -> Any:
        status, said = (error.status, error.error) if isinstance(error, _Declined) else (422, str(error))
        headers = {"Retry-After": str(AGAIN_SECONDS)} if status == 503 else None
        return JSONResponse({"error": plain(said, 1000)}, status, headers=headers)

    # Annotations are texts in this file, which FastAPI could not resolve inside a function.
    for made in (score, applies):
        made.__annotations__ = {"request": Request}
    health.__annotations__ = {}
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    app.add_api_route("/score", score, methods=["POST"], response_model=None)
    app.add_api_route("/applies", applies, methods=["POST"], response_model=None)
    app.add_exception_handler(_Declined, declined)
    app.add_exception_handler(Refused, declined)
    return _Door(app, token)


def _read(body: bytearray, limits: Limits, applies: bool) -> Asked:
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise _Declined(413, f"the request has more than {MOST_VALUES} values; send fewer rows.")
    try:
        value = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Declined(400, "the request is no UTF-8.") from None
    except BadJson as error:
        raise _Declined(400, f"the request is no JSON that can be read: {error.reason}.") from None
    return read_request(value, Pixels(picture=limits.picture_pixels, whole=limits.pixels), applies=applies)


def _check_groups(asked: Asked, scorers: Scorers) -> None:
    if asked.group_U is None and scorers.about()[asked.reward]["scope"] == "set":
        raise _Declined(422, f"the reward {shown(asked.reward, 80)} compares outputs: groups are wanted, scope: set.")


async def _apart(work: Callable[..., Any], *args: Any) -> Any:
    """In a thread, so that others are answered meanwhile; one each, as who holds a lock must not wait for a place among few."""
    done, loop = asyncio.get_running_loop().create_future(), asyncio.get_running_loop()

    def tell(put: Callable[[Any], None], what: Any) -> None:
        if not done.done():
            put(what)

    def run() -> None:
        try:
            put, what = done.set_result, work(*args)
        except BaseException as error:  # for who waits
            put, what = done.set_exception, error
        if not loop.is_closed():
            loop.call_soon_threadsafe(partial(tell, put, what))

    import threading

    threading.Thread(target=run, name="grpo_mm-serve", daemon=True).start()
    return await done


class _Bodies:
    """Bodies of requests, limited each and together before they are read."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    @asynccontextmanager
    async def read(self, request: Any) -> AsyncIterator[bytearray]:
        size = self._announced(request.headers)
        if self.held + size > HELD * self.most:
            raise _Declined(503, "too much is being asked at once; ask again.")
        self.held += size
        try:
            try:
                async with asyncio.timeout(LONGEST_REQUEST_SECONDS):
                    body = await self._whole(request)
            except TimeoutError:
                raise _Declined(
                    408, f"the request did not arrive within {LONGEST_REQUEST_SECONDS:g} seconds."
                ) from None
            yield body
        finally:
            self.held -= size

    def _announced(self, headers: Mapping[str, str]) -> int:
        """Bytes that may come; raises _Declined for too many, and for a body of another kind."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or headers.get("content-encoding", "identity").lower() != "identity":
            raise _Declined(415, "wanted a body of application/json, not packed.")
        said = headers.get("content-length")
        if said is None:
            return self.most
        if not (said.isascii() and said.isdigit()):
            raise _Declined(400, "Content-Length is no number.")
        if len(said) > 15 or int(said) > self.most:
            raise self._too_long()
        return int(said)

    async def _whole(self, request: Any) -> bytearray:
        from starlette.requests import ClientDisconnect

        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self.most:
                    raise self._too_long()
        except ClientDisconnect:
            raise _Declined(499, "the connection was lost") from None
        return body

    def _too_long(self) -> _Declined:
        return _Declined(
            413, f"the request has more than {self.most} bytes; send fewer rows, or serve with a larger --max-mib."
        )


class _Door:
    """Lets in who has the token; without one, who names this machine as the host (a page in a browser cannot)."""

    def __init__(self, inner: Any, token: str | None) -> None:
        self.inner, self.wanted = inner, None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self._may_in(dict(scope["headers"])):
            await self.inner(scope, receive, send)
            return
        status, said = (401, "wrong or no token") if self.wanted else (403, "this host is not served without a token")
        body = json.dumps({"error": said}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _may_in(self, headers: Mapping[bytes, bytes]) -> bool:
        if self.wanted is not None:
            return hmac.compare_digest(headers.get(b"authorization", b""), self.wanted)
        host = headers.get(b"host", b"").decode("latin-1")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
        return is_loopback(name)
