"""Who is at work: the sampler, the rewards, the trainer, and how long each of them had nothing to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

Role = Literal["sampler", "rewards", "trainer"]
ROLES: tuple[Role, ...] = get_args(Role)
OF_PHASE: Mapping[str, Role] = {"rollout": "sampler", "reward": "rewards"}
"""Whose work the outermost phase of a thread is."""
WAITING = "wait_rows"
"""The phase in which the main thread waits for rows that are drawn or scored beside it."""


def role_of(phases: Sequence[str], *, is_main: bool) -> Role | None:
    """Of a thread that is in these phases, outermost first. What the main thread does beside waiting is the trainer's."""
    if phases and phases[0] in OF_PHASE:
        return OF_PHASE[phases[0]]
    return "trainer" if is_main and WAITING not in phases[:1] else None


class Busy:
    """Seconds in which at least one thread did the work of a role."""

    def __init__(self, now: float) -> None:
        self._threads = dict.fromkeys(ROLES, 0)
        self._since = dict.fromkeys(ROLES, now)
        self._seconds = dict.fromkeys(ROLES, 0.0)

    def switch(self, before: Role | None, after: Role | None, now: float) -> None:
        """A thread leaves the work of one role for that of another."""
        if before == after:
            return
        if after is not None:
            self._since[after] = self._since[after] if self._threads[after] else now
            self._threads[after] += 1
        if before is not None:
            self._threads[before] -= 1
            self._seconds[before] += 0.0 if self._threads[before] else now - self._since[before]

    def take(self, now: float) -> dict[Role, float]:
        """Since the last call."""
        for role, threads in self._threads.items():
            if threads:
                self._seconds[role] += now - self._since[role]
                self._since[role] = now
        found, self._seconds = self._seconds, dict.fromkeys(ROLES, 0.0)
        return found


def idle_shares(busy: Mapping[Role, float], wall: float) -> dict[str, float]:
    """Role → the share of `wall` seconds in which nobody did its work."""
    return {role: min(1.0, max(0.0, 1 - seconds / wall)) if wall > 0 else 0.0 for role, seconds in busy.items()}
