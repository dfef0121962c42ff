"""Asking one engine server: each call has a deadline, and what went wrong is one of three things."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from grpo_mm.errors import ConfigError
from grpo_mm.outside import BadJson, parse_json, plain, reason, shown
from grpo_mm.pipelines.vlm.engine_server.wire import (
    DOOR,
    MOST_BYTES,
    PREFIX,
    Answered,
    Asked,
    Unreadable,
    pack_asked,
    read_answered,
)
from grpo_mm.processes.services import NotUp, address_of, is_named

CONNECT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A server that is at work says so more often (`door.BLANK_SECONDS`): one that is silent for so long has gone, or its machine."""
PIECE_BYTES = 2**20
PAUSE_SECONDS = 0.2


class Away(Exception):
    """It cannot be reached, is busy, or the connection was lost: it may come back."""

    def __init__(self, why: str, *, while_asked: bool = False) -> None:
        """while_asked: it had begun; what it was asked may be the reason."""
        super().__init__(why)
        self.while_asked = while_asked


class Late(Away):
    """Time is up; why there was no answer is what was said before."""


class Stale(Exception):
    """Other weights are in place than were asked for."""


class Refused(Exception):
    """It is there and does not do what is asked; asking again changes nothing."""


class Server:
    """What a server is asked. Threads may share it."""

    def __init__(self, url: str, token: str | None, *, connections: int) -> None:
        import httpx2

        self.url = url.rstrip("/")
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            limits=httpx2.Limits(max_connections=connections + 2),
            verify=url.startswith("https:"),  # else certificates would be read for nothing
            follow_redirects=False,  # another host would get the token
            trust_env=False,  # asked directly
        )

    def state(self, *, until: float) -> dict[str, Any]:
        """How it was started, see `ServedEngine.about`. until: time.monotonic(), after which nobody waits for it; all raise Away and Refused."""
        found = self._asked("GET", "state", until=until)
        if not isinstance(found, dict) or not isinstance(found.get("settings"), dict) or "version" not in found:
            raise Refused(f"it is no server of this package: it says {shown(found, 80)}")
        return found

    def draw(self, asked: Asked, *, until: float) -> Answered:
        """Raises Stale as well."""
        found = self._asked("POST", "draw", content=pack_asked(asked), until=until)
        try:
            return read_answered(found, len(asked.seeds))
        except Unreadable as error:
            raise Away(str(error), while_asked=True) from None

    def bring(
        self,
        version: str,
        files: Iterable[tuple[str, bytes]],
        *,
        base: bool,
        adapter: bool,
        folder: str | None,
        until: float,
        under: str | None = None,
    ) -> bool:
        """Puts weights in place, or waits until another process of the run has.

        Args:
            files: (name, content) of what is sent; they are not asked for where another process brings the weights.
            folder: where the files lie instead, in a folder that the server sees under the same name.
            under: what the version in place has to begin with, where these go on top of it; raises Stale if it does not.

        Returns:
            Whether these were brought from here.
        """
        while True:
            found = self._json("POST", "weights/begin", {"version": version, "under": under}, until=until)
            if found.get("state") == "there":
                return False
            if found.get("state") == "other":
                raise Stale("somebody else's weights were put in place meanwhile")
            if found.get("state") == "bring":
                break
            if time.monotonic() > until:
                raise Away("another process has been bringing weights all the time")
            time.sleep(PAUSE_SECONDS)
        upload = str(found.get("upload"))
        for name, content in files:
            self._asked("PUT", f"weights/{upload}/{name}", content=_in_pieces(content), until=until)
        said = {"upload": upload, "version": version, "base": base, "adapter": adapter, "folder": folder}
        self._json("POST", "weights/finish", said, until=until)
        return True  # fmt: skip

    def _json(self, method: str, path: str, said: Mapping[str, Any], *, until: float) -> dict[str, Any]:
        found = self._asked(method, path, content=json.dumps(said).encode(), until=until)
        return found if isinstance(found, dict) else {}

    def _asked(self, method: str, path: str, *, until: float, content: Any = None) -> Any:
        import httpx2

        left = until - time.monotonic()
        if left <= 0:
            raise Late("it gave no answer in time")
        timeout = httpx2.Timeout(min(SILENT_SECONDS, left), connect=min(CONNECT_SECONDS, left))
        try:
            url = address_of(self.url).rstrip("/")  # a service of a launch may be back elsewhere
            with self._client.stream(method, url + PREFIX + path, content=content, timeout=timeout) as response:
                body = bytearray()
                for piece in response.iter_raw():
                    body += piece
                    if len(body) > MOST_BYTES or time.monotonic() > until:
                        raise Away("its answer does not end")
        except NotUp as error:
            raise Away(str(error)) from None
        except httpx2.ConnectError as error:
            raise Away(f"it cannot be reached ({reason(error, 100)})") from None
        except httpx2.HTTPError as error:
            raise Away(f"the connection was lost ({reason(error, 100)})", while_asked=True) from None
        return _read(response.status_code, bytes(body))


def check_url(url: str) -> None:
    """Raises ConfigError for what is no http address; what may hold a secret is not repeated."""
    told = re.sub(r"//[^/]*@", "//***@", re.sub(r"[?#].*", "?***", url, flags=re.DOTALL))
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigError(
            f"engine.generator.urls: {shown(told)} is no address: its host or port cannot be read."
        ) from None
    if is_named(url) and parts.hostname:
        return
    if parts.username or parts.password:
        raise ConfigError(
            "engine.generator.urls: an address holds a user name or a password, which a run folder would show; use token_env."
        )
    wrong = parts.scheme not in ("http", "https") or not parts.hostname or set(url) & set(" \t\n")
    if wrong or parts.query or parts.fragment:
        raise ConfigError(f"engine.generator.urls: {shown(told)}, wanted the like of http://host:8100.")


def _in_pieces(content: bytes) -> Iterator[bytes]:
    view = memoryview(content)
    for start in range(0, len(view), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])


def _read(status: int, body: bytes) -> Any:
    text = body.decode("utf-8", "replace")
    try:
        found = parse_json(text)
    except BadJson as error:
        if status == 200:
            raise Away(f"it answered no JSON ({error.reason})") from None
        found = None
    if status == 200 and isinstance(found, dict) and isinstance(found.get("failed"), int):
        status = found["failed"]
    if status == 200:
        return found
    said = found.get("error") if isinstance(found, dict) else None
    said = f"status {status}: {plain(str(said or text), 600)}"
    if status == 409:
        raise Stale(said)
    if status == 404 and "nothing that is answered here" not in said:
        raise Refused(
            f"{said}; a vLLM server is asked through a door of this package: start it with --middleware {DOOR}"
        )
    if status >= 500 or status in (408, 410, 429):
        raise Away(said, while_asked=status == 500)
    raise Refused(f"it refuses the token (token_env): {said}" if status == 401 else said)
