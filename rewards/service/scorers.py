"""The named rewards that a server holds: one call at a time for each, and whose calls may run beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import reason, shown
from grpo_mm.registry import kind_of
from grpo_mm.rewards.service.wire import Asked
from grpo_mm.rollout.own_copies import is_own, own_prompt
from grpo_mm.rollout.safe_call import all_nan, own_limit
from grpo_mm.rollout.scoring import Scorer, Scoring, is_apart
from grpo_mm.rollout.surroundings import kept
from grpo_mm.types import is_relative


class Scorers:
    """Rewards by name, on one device. Calls block: `scored` and `applied` are for threads, under `alone`."""

    def __init__(self, scorers: Mapping[str, Scorer], device: torch.device, *, most_seconds: float) -> None:
        """most_seconds: of one call of a reward that has no limit of its own; after that its rows are failed rows."""
        self.scoring = Scoring(
            {name: _with_limit(name, scorer, most_seconds) for name, scorer in scorers.items()}, device
        )
        self.golden: dict[str, str] = {}
        """Name -> what its golden pictures said, of those that have some."""
        self._turn = {name: asyncio.Lock() for name in scorers}
        self._gate = _Gate()

    def __contains__(self, name: str) -> bool:
        return name in self.scoring.scorers

    def about(self) -> dict[str, dict[str, Any]]:
        """What a run that asks has to know of each."""
        return {
            name: {
                "kind": kind_of("reward", scorer.use),
                "scope": "set" if is_relative(scorer.use) else "output",
                "applies_to": hasattr(scorer.use, "applies_to"),
                **({"golden": self.golden[name]} if name in self.golden else {}),
            }
            for name, scorer in self.scoring.scorers.items()
        }

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """Until no other call asks this reward. A user's code in our process may change global settings and generators, so that no
        other call runs beside it; rewards of this package, and those with isolate: true, do not wait for each other."""
        scorer = self.scoring.scorers[name]
        apart = is_apart(scorer)
        async with self._turn[name]:
            if apart:
                yield
            else:
                async with self._gate.entered(alone=not is_own(scorer.use)):
                    yield

    def scored(self, asked: Asked, patience: float = 1.0) -> tuple[dict[str, Tensor], list[str]]:
        """As `Scoring.ask`; what a reward raises is a failed row."""
        relative = is_relative(self.scoring.scorers[asked.reward].use)
        try:
            group = asked.group_U if relative else None
            return self.scoring.ask(asked.reward, asked.items, asked.prompts, group, patience=patience)
        except UserError as error:  # weights that are gone since the start, a server behind this one that is away
            return all_nan(len(asked.prompts)), [reason(error)]

    def applied(self, asked: Asked) -> list[bool | str]:
        """For each prompt whether the reward applies to it, or why it cannot say."""
        use = self.scoring.scorers[asked.reward].use
        ruled = getattr(use, "applies_to", None)
        if ruled is None:
            return [True] * len(asked.prompts)
        with kept(asked.reward):
            return [_ruling(ruled, prompt if is_own(use) else own_prompt(prompt)) for prompt in asked.prompts]


def _with_limit(name: str, scorer: Scorer, most_seconds: float) -> Scorer:
    if scorer.timeout_seconds is not None:
        return scorer
    try:
        own = own_limit(scorer.use)
    except ValueError as error:
        raise ConfigError(f"{name}: {reason(error)}") from error
    return replace(scorer, timeout_seconds=most_seconds if own is None else own)


def _ruling(ruled: Callable[[Any], Any], prompt: Any) -> bool | str:
    try:
        return bool(ruled(prompt))
    except BaseException as error:  # whatever a reward raises
        return f"it cannot say whether it applies to {shown(prompt.id)}: {reason(error)}"


class _Gate:
    """Many at once, or one that is alone; who wants to be alone is not overtaken."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside, self._alone, self._waiting = 0, False, 0

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        async with self._changed:
            self._waiting += alone
            try:
                await self._changed.wait_for(partial(self._is_free, alone))
            finally:
                self._waiting -= alone
            self._inside += 1
            self._alone = alone
        try:
            yield
        finally:
            async with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()

    def _is_free(self, alone: bool) -> bool:
        return self._inside == 0 if alone else not self._alone and not self._waiting
