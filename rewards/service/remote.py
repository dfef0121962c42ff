"""A reward that another process or machine computes: `grpo-mm serve` there, {kind: remote} here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.identity import FREE
from grpo_mm.outside import plain, shown
from grpo_mm.processes.clock import count
from grpo_mm.processes.token import token_of
from grpo_mm.rewards.service.asking import Server, Unanswered, check_url, client_of
from grpo_mm.rewards.service.png import Refused
from grpo_mm.rewards.service.wire import pack_items, pack_prompt, read_answer
from grpo_mm.rewards.shared.run_apart import run_apart
from grpo_mm.rollout.returned_scores import Reported
from grpo_mm.types import Prompt, pick_items

log = logging.getLogger(__name__)
FIRST_SECONDS = 60.0
"""How long a server that has never answered is waited for."""
SILENT_SECONDS = 30.0
MOST_REMEMBERED = 100_000
"""Prompts of which it is known whether the reward applies."""


class _Known:
    """What the server has said. Slots: a reward is copied for where it holds a dict of its own (`own_copies.is_own`)."""

    __slots__ = ("applies", "asks_applies", "is_met", "silent_until", "unanswered")

    def __init__(self) -> None:
        self.is_met, self.asks_applies = False, True
        self.applies: dict[bytes, bool | str] = {}
        self.unanswered, self.silent_until = "", 0.0
        """Why the last question had no answer, and until when `applies_to` does not ask again."""


@dataclass
class Remote:
    """A reward of a config that `grpo-mm serve` holds elsewhere, with the same scores, parts and failures as if it were here.

    Outputs go in batches, several at once. A server that is away or busy is waited for until the deadline; a lost connection, a status
    5xx and an unreadable answer are tried again `retries` times. Rows without an answer are failed rows, with the reason. Before
    anything is sampled the server is asked whether it is there and has this reward. Media that are no pictures are not sent: a reward
    that looks at them fails on the server and says so. Pixels go as PNG, so nothing is lost. Rewards whose rounding depends on what
    else is scored at once give the very same bits with `batch: null`.
    """

    url: str = field(metadata=FREE)
    """Of the server, e.g. http://scorers:8420."""
    reward: str
    """Its name among the `rewards` or `watch` of the config that is served."""
    token_env: str | None = field(default=None, metadata=FREE)
    """The environment variable that holds the server's token, so that no config does."""
    timeout_seconds: float = field(default=600.0, metadata=FREE)
    """For all outputs of a step on one rank, further tries included."""
    retries: int = field(default=4, metadata=FREE)
    """Further tries of a batch after a failure that may pass; waiting for a server that is away counts none."""
    batch: int | None = field(default=64, metadata=FREE)
    """Outputs of one request; with scope: set whole groups, at least one. null: all that are asked at once, and the server scores them
    apart from what other ranks ask."""
    concurrency: int = field(default=4, metadata=FREE)
    """Requests under way at once, from this process."""
    scope: Literal["output", "set"] = "output"
    """set: a reward that compares the outputs of a group, as the server says of it."""
    constant_steps: int | None = field(default=3, metadata=FREE)
    """A step in which all outputs get one and the same score is warned of, so many in a row stop the run: a scorer that is broken may
    answer all the same. null: only warned of, for rewards that are honestly constant for long, such as right or wrong."""

    def __post_init__(self) -> None:
        if not self.timeout_seconds > 0 or self.retries < 0 or self.concurrency < 1:
            raise ConfigError(
                f"remote: timeout_seconds = {self.timeout_seconds} (wanted above 0), retries = {self.retries} (wanted 0 or more), "
                f"concurrency = {self.concurrency} (wanted at least 1)."
            )
        for name, value in (("batch", self.batch), ("constant_steps", self.constant_steps)):
            if value is not None and value < 1:
                raise ConfigError(f"remote: {name} = {value}; wanted at least 1, or null.")
        self._known = _Known()

    needs_device: ClassVar[bool] = False

    @property
    def shares_calls(self) -> bool:
        """The server itself puts requests together, unless they are to be scored alone."""
        return self.batch is not None

    def check(self) -> None:
        """Raises ConfigError for a malformed address or a token that is not set; does not call the server."""
        check_url(self.url)
        self._token()

    def to(self, device: torch.device) -> None:
        """The first time: is the server there, and has it this reward? Nothing is moved.

        Raises:
            ConfigError: not within a minute, or with another scope.
        """
        if not self._known.is_met:
            self.check()
            try:
                self._met(run_apart(self._asked(self._health, min(FIRST_SECONDS, self.timeout_seconds))))
            except Unanswered as error:
                raise ConfigError(
                    f"the server of the reward {shown(self.reward)} is not there: {error}. Start it with `grpo-mm serve`, or correct url."
                ) from None

    def __call__(self, items: Any, prompts: Sequence[Prompt], group_U: Tensor | None = None) -> Reported:
        """Scores and parts [U], NaN with a reason where there is no answer."""
        batches = self._batches(len(prompts), group_U)
        # A little before the limit that is set from outside, so that what is done by then counts.
        limit = self.timeout_seconds - min(1.0, self.timeout_seconds / 10)

        async def all_of(server: Server, client: Any) -> list[tuple[dict[str, Tensor], list[str]]]:
            under_way = asyncio.Semaphore(self.concurrency)

            async def one(rows: Tensor) -> tuple[dict[str, Tensor], list[str]]:
                async with under_way:
                    return await self._scored(server, client, items, prompts, rows, group_U)

            return await asyncio.gather(*map(one, batches))

        return _joined(batches, run_apart(self._asked(all_of, limit)), len(prompts))

    def applies_to(self, prompt: Prompt) -> bool:
        """What the reward says there; raises UserError where it cannot say, or has no answer."""
        self.to(torch.device("cpu"))
        if not self._known.asks_applies:
            return True
        key = _key(prompt)
        if key not in self._known.applies:
            self.ask_ahead([prompt])
        said = self._known.applies[key]
        if isinstance(said, str):
            raise UserError(said)
        return said

    def ask_ahead(self, prompts: Sequence[Prompt]) -> None:
        """Asks for many prompts at once what `applies_to` will be asked.

        Raises:
            UserError: no answer; for half a minute after that nothing is asked, or each prompt of a step would wait.
        """
        self.to(torch.device("cpu"))
        if not self._known.asks_applies:
            return
        unknown = {key: prompt for prompt in prompts if (key := _key(prompt)) not in self._known.applies}
        if not unknown:
            return
        if time.monotonic() < self._known.silent_until:
            raise UserError(self._known.unanswered)
        if len(self._known.applies) + len(unknown) > MOST_REMEMBERED:
            self._known.applies.clear()
        keys, size = list(unknown), self.batch or len(unknown)

        async def all_of(server: Server, client: Any) -> None:
            for start in range(0, len(keys), size):
                some = keys[start : start + size]
                body = {"reward": self.reward, "prompts": [pack_prompt(unknown[k], with_media=False) for k in some]}
                answer = await server.post(client, "applies", body)
                said = answer.get("applies") if isinstance(answer, dict) else None
                if (
                    not isinstance(said, list)
                    or len(said) != len(some)
                    or not all(isinstance(s, bool | str) for s in said)
                ):
                    raise Unanswered(f"{self.url} does not say whether {self.reward} applies: {shown(said, 80)}")
                self._known.applies.update(zip(some, said))

        try:
            run_apart(self._asked(all_of, min(FIRST_SECONDS, self.timeout_seconds)))
        except Unanswered as error:
            self._known.unanswered = f"whether the reward {shown(self.reward)} applies is not known: {error}."
            self._known.silent_until = time.monotonic() + SILENT_SECONDS
            raise UserError(self._known.unanswered) from None

    async def _asked(self, work: Any, seconds: float) -> Any:
        token = self._token()
        server = Server(self.url, token, self.retries, time.monotonic() + seconds, seconds)
        async with client_of(self.url, token, self.concurrency) as client:
            return await work(server, client)

    def _token(self) -> str | None:
        return None if self.token_env is None else token_of(self.token_env, must=True)

    async def _health(self, server: Server, client: Any) -> Any:
        return await server.get(client, "health")

    def _met(self, health: Any) -> None:
        rewards = health.get("rewards") if isinstance(health, dict) else None
        if not isinstance(rewards, dict):
            raise ConfigError(f"remote: {self.url} is no server of rewards: it says {shown(health, 80)}.")
        about = rewards.get(self.reward)
        if not isinstance(about, dict):
            names = ", ".join(shown(name, 40) for name in list(rewards)[:20])
            raise ConfigError(f"remote: {self.url} serves no reward {shown(self.reward)}; it serves {names}.")
        if about.get("scope") != self.scope:
            raise ConfigError(
                f"remote: scope = {self.scope}, but {self.url} says of {shown(self.reward)}: {shown(about.get('scope'), 40)}."
            )
        if str(about.get("golden", "")).startswith("unverified"):
            log.warning("%s says of the reward %s: %s", self.url, shown(self.reward), plain(about["golden"], 300))
        self._known.is_met, self._known.asks_applies = True, bool(about.get("applies_to"))

    def _batches(self, rows: int, group_U: Tensor | None) -> list[Tensor]:
        """Indices of the rows of each request; groups stay whole."""
        size = self.batch or rows
        if group_U is None:
            return list(torch.arange(rows).split(size)) if rows else []
        found: list[Tensor] = []
        for group in dict.fromkeys(group_U.tolist()):
            mine = (group_U == group).nonzero()[:, 0]
            if found and len(found[-1]) + len(mine) <= size:
                found[-1] = torch.cat([found[-1], mine])
            else:
                found.append(mine)
        # In order, so that one batch of everything is the call that would be made here.
        return [rows.sort().values for rows in found]

    async def _scored(
        self, server: Server, client: Any, items: Any, prompts: Sequence[Prompt], rows: Tensor, group_U: Tensor | None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Of some rows. Where they are too long together, or something cannot be sent, each half is asked alone, down to the row."""
        try:
            body = await asyncio.to_thread(self._body, items, prompts, rows, group_U)
            count("remote_requests", 1)
            answer = await server.post(client, "score", body)
        except (Unanswered, Refused) as error:
            whole = isinstance(error, Unanswered) and not error.too_long
            if whole or len(rows) == 1 or group_U is not None:
                return {"score": torch.full((len(rows),), torch.nan)}, [str(error)]
        else:
            try:
                return read_answer(answer, len(rows))
            except Refused as error:
                return {"score": torch.full((len(rows),), torch.nan)}, [f"{self.url}: {error}"]
        size = (len(rows) + 1) // 2
        found = [await self._scored(server, client, items, prompts, half, None) for half in rows.split(size)]
        joined = _joined(torch.arange(len(rows)).split(size), found, len(rows))
        return dict(joined), joined.errors

    def _body(self, items: Any, prompts: Sequence[Prompt], rows: Tensor, group_U: Tensor | None) -> dict[str, Any]:
        asked = [prompts[i] for i in rows.tolist()]
        different = {id(prompt): prompt for prompt in asked}
        place = {key: i for i, key in enumerate(different)}
        return {
            "reward": self.reward,
            "prompts": [pack_prompt(prompt) for prompt in different.values()],
            "row_prompt": [place[id(prompt)] for prompt in asked],
            "items": pack_items(pick_items(items, rows)),
            "groups": None if group_U is None else group_U[rows].tolist(),
        } | ({"alone": True} if self.batch is None else {})


def _joined(batches: Sequence[Tensor], found: Sequence[tuple[dict[str, Tensor], list[str]]], rows: int) -> Reported:
    scores: dict[str, Tensor] = {"score": torch.full((rows,), torch.nan)}
    errors: list[str] = []
    for index, (parts, failures) in zip(batches, found):
        for name, value in parts.items():
            scores.setdefault(name, torch.full((rows,), torch.nan))[index] = value
        errors += failures
    return Reported(scores, list(dict.fromkeys(errors)))


def _key(prompt: Prompt) -> bytes:
    body = json.dumps(pack_prompt(prompt, with_media=False), sort_keys=True)
    return hashlib.blake2b(body.encode(), digest_size=16).digest()
