"""The way into a vLLM server for the run that trains: `vllm serve … --middleware grpo_mm.pipelines.vlm.engine_server.door.Door`.

It answers what begins with /grpo_mm/ and leaves the rest to vLLM. With GRPO_MM_TOKEN set in the server's environment, everything
but /health needs that token, vLLM's own paths too; without it only this machine is let in, by its own name.

| GET state | how it was started, which weights are in place |
| POST draw | answers to one prompt (`wire`), with the version that drew each |
| POST weights/begin, PUT weights/UPLOAD/FILE, POST weights/finish | new weights: files in pieces, then in place while nobody draws |
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from grpo_mm.outside import BadJson, parse_json, plain, reason, shown
from grpo_mm.pipelines.vlm.engine_server.served_engine import ServedEngine
from grpo_mm.pipelines.vlm.engine_server.served_weights import Declined
from grpo_mm.pipelines.vlm.engine_server.wire import MOST_BYTES, PREFIX, Unreadable, pack_answered, read_asked

TOKEN = "GRPO_MM_TOKEN"
MOST_JSON = 2**16
BLANK_SECONDS = 5.0
"""Between signs of life of a server that is at work; `asking.SILENT_SECONDS` is more."""
JSON = [(b"content-type", b"application/json")]

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Door:
    """An ASGI middleware; vLLM makes one for its application."""

    def __init__(self, app: Any) -> None:
        self._app, self._token = app, os.environ.get(TOKEN) or None
        self._engine: ServedEngine | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        path = scope["path"]
        own = path.startswith(PREFIX)
        if path != "/health" and (refused := self._refused(scope, own)):
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await _answer(send, *refused)
        if not own or scope["type"] != "http":
            return await self._app(scope, receive, send)
        await self._answered(scope, receive, send)

    def _refused(self, scope: dict[str, Any], own: bool) -> tuple[int, dict[str, Any]] | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._token is not None:
            kind, _, sent = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(sent.encode(), self._token.encode()):
                return 401, {"error": f"wrong token: it is that of {TOKEN} where the server was started"}
            return None
        client = (scope.get("client") or ("",))[0]
        host = headers.get("host", "").rsplit(":", 1)[0].strip("[]")
        if own and not (_is_here(client) and _is_here(host)):
            return 403, {
                "error": f"without a token (environment variable {TOKEN}) this server is for its own machine alone"
            }
        return None

    async def _answered(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if self._engine is None:
            self._engine = ServedEngine(scope["app"].state)
        await _kept_informed(send, receive, self._said(scope, receive))

    async def _said(self, scope: dict[str, Any], receive: Receive) -> tuple[int, dict[str, Any]]:
        """Status and value of JSON."""
        try:
            return 200, await self._done(scope, receive)
        except Declined as error:
            return error.status, {"error": plain(error.error, 1000), **error.more}
        except (Unreadable, BadJson) as error:
            return 422, {"error": plain(str(error), 1000)}
        except _Gone:
            return 499, {"error": "who asked has gone"}
        except Exception as error:  # the engine's own; vLLM's server ends itself where its engine is dead
            return 500, {"error": reason(error)}

    async def _done(self, scope: dict[str, Any], receive: Receive) -> dict[str, Any]:
        engine = self._engine
        match scope["method"], scope["path"].removeprefix(PREFIX).split("/"):
            case ("GET", ["state"]):
                return engine.about()
            case ("POST", ["draw"]):
                body = await _body(receive, MOST_BYTES)
                asked = await asyncio.to_thread(read_asked, body)
                del body
                return pack_answered(await _unless_gone(engine.draw(asked), receive))
            case ("POST", ["weights", "begin"]):
                said = await _json(receive)
                under = None if said.get("under") is None else _text(said, "under")
                return engine.weights.begin(_text(said, "version"), under=under)
            case ("PUT", ["weights", upload, name]):
                await self._written(engine.weights.file(upload, name), upload, receive)
                return {}
            case ("POST", ["weights", "finish"]):
                return {"version": await self._finished(await _json(receive))}
            case _:
                raise Declined(404, f"{scope['method']} {shown(scope['path'], 80)} is nothing that is answered here")

    async def _written(self, path: Path, upload: str, receive: Receive) -> None:
        size = 0
        with open(path, "wb") as file:
            async for piece in _pieces(receive):
                size += len(piece)
                if size > MOST_BYTES:
                    raise Declined(413, f"more than {MOST_BYTES} bytes in one file")
                await asyncio.to_thread(file.write, piece)
                self._engine.weights.heard_of(upload)

    async def _finished(self, said: dict[str, Any]) -> str:
        upload, version = _text(said, "upload"), _text(said, "version")
        base, adapter, elsewhere = bool(said.get("base")), bool(said.get("adapter")), said.get("folder")

        async def change(folder: Path) -> None:
            if elsewhere is not None:
                folder = Path(_text(said, "folder"))
                if not folder.is_dir():
                    raise Declined(400, f"there is no folder {shown(str(folder))} where the server runs")
            await self._engine.change(folder, version, base=base, adapter=adapter)

        # Not given up half-way because who asked has gone.
        return await asyncio.shield(asyncio.ensure_future(self._engine.weights.finish(upload, change)))


class _Gone(Exception):
    """Nobody waits for the answer."""


async def _kept_informed(send: Send, receive: Receive, work: Awaitable[tuple[int, dict[str, Any]]]) -> None:
    """Answers; while that takes long, blanks tell that the server is there, and the status comes in the text."""
    working = asyncio.ensure_future(work)
    begun = False
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=BLANK_SECONDS)
            if not working.done():
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": JSON})
                    begun = True
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
        status, said = working.result()
        if begun:
            said = said if status == 200 else {"failed": status, **said}
            await send({"type": "http.response.body", "body": json.dumps(said, allow_nan=False).encode()})
        else:
            await _answer(send, status, said)
    finally:
        working.cancel()


async def _unless_gone(work: Awaitable[Any], receive: Receive) -> Any:
    """What comes of it, given up when who asked goes; the request has been read."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pieces(receive: Receive):  # noqa: ANN202
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


async def _body(receive: Receive, most: int) -> bytes:
    found = bytearray()
    async for piece in _pieces(receive):
        found += piece
        if len(found) > most:
            raise Declined(413, f"more than {most} bytes")
    return bytes(found)


async def _json(receive: Receive) -> dict[str, Any]:
    body = await _body(receive, MOST_JSON)
    found = parse_json(body.decode("utf-8", "replace"))
    if not isinstance(found, dict):
        raise Declined(422, "wanted an object of JSON")
    return found


def _text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 4096 or "\0" in value:
        raise Declined(422, f"{name} = {shown(value, 80)}; wanted a text")
    return value


async def _answer(send: Send, status: int, said: Any) -> None:
    body = json.dumps(said, allow_nan=False).encode()
    headers = [*JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_here(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
