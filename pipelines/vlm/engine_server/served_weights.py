"""Weights of a served engine: who may bring new ones, where their files wait, and that nobody draws while they change."""

from __future__ import annotations

import asyncio
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_mm.outside import reason, shown
from grpo_mm.processes.own_folder import OwnFolder

CLAIM_SECONDS = 60.0
"""Whoever brings weights and is silent for so long has given up."""
FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,100}\.(safetensors|json)")


class Declined(Exception):
    """A request that is not done, as a status of HTTP and a sentence; `more` goes into the answer."""

    def __init__(self, status: int, error: str, **more: Any) -> None:
        super().__init__(error)
        self.status, self.error, self.more = status, error, more


@dataclass
class _Claim:
    """Somebody who brings weights."""

    version: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    folder: OwnFolder = field(default_factory=lambda: OwnFolder("weights"))
    heard: float = field(default_factory=time.monotonic)

    @property
    def is_silent(self) -> bool:
        return time.monotonic() - self.heard > CLAIM_SECONDS


class ServedWeights:
    """One for an engine. Several processes of a run share a server: the first that misses its weights brings them."""

    def __init__(self) -> None:
        self.version = ""
        """Of the weights in place, as who brought them says; "": those that the server was started with, or nobody knows."""
        self._claim: _Claim | None = None
        self._readers, self._changes = 0, False
        self._turn = asyncio.Condition()

    @asynccontextmanager
    async def drawing(self, version: str) -> AsyncIterator[None]:
        """Within, weights stay. Raises Declined (409) for a version that is not in place."""
        async with self._turn:
            await self._turn.wait_for(lambda: not self._changes)
            if version != self.version:
                raise Declined(409, f"other weights are in place: {shown(self.version)}", version=self.version)
            self._readers += 1
        try:
            yield
        finally:
            async with self._turn:
                self._readers -= 1
                self._turn.notify_all()

    def begin(self, version: str, *, under: str | None = None) -> dict[str, Any]:
        """{"state": "there"}, nothing is missing; {"state": "coming"}, another brings weights; {"state": "bring", "upload": …}.

        under: what the version in place has to begin with; else {"state": "other"}. From "bring" on it stays in place.
        """
        if version == self.version:
            return {"state": "there"}
        if self._claim is not None and not self._claim.is_silent:
            return {"state": "coming"}
        if under is not None and not self.version.startswith(under):
            return {"state": "other"}
        self._forget()
        self._claim = _Claim(version)
        return {"state": "bring", "upload": self._claim.id}

    def file(self, upload: str, name: str) -> Path:
        """Where a file of an upload is written. Raises Declined for another's upload, and for a name that is none of ours."""
        claim = self._of(upload)
        if not FILE.fullmatch(name):
            raise Declined(400, f"{shown(name, 80)} is no name of a file of weights")
        return claim.folder.path / name

    def heard_of(self, upload: str) -> None:
        """It goes on."""
        self._of(upload).heard = time.monotonic()

    async def finish(self, upload: str, change: Callable[[Path], Awaitable[None]]) -> str:
        """Puts an upload in place, alone, once all that draw have ended. Raises Declined (500) where the engine cannot take it.

        Args:
            change: given the folder of what was uploaded, changes the engine.

        Returns:
            The version that is in place now.
        """
        claim = self._of(upload)
        claim.heard = math.inf  # nobody takes its place any more
        async with self._turn:
            await self._turn.wait_for(lambda: not self._changes)
            self._changes = True
            try:
                await self._turn.wait_for(lambda: self._readers == 0)
                self.version = ""
                await change(claim.folder.path)
                self.version = claim.version
            except Declined:
                raise
            except Exception as error:
                raise Declined(500, f"the engine cannot take the weights: {reason(error)}") from error
            finally:
                self._changes = False
                self._turn.notify_all()
                self._forget()
        return self.version

    def _of(self, upload: str) -> _Claim:
        if self._claim is None or self._claim.id != upload:
            raise Declined(410, "this upload is over: another has taken its place, or the server was started anew")
        return self._claim

    def _forget(self) -> None:
        if self._claim is not None:
            self._claim.folder.close()
        self._claim = None
