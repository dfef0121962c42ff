"""Whether a run whose trainers ended is begun again, and what is said of it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit codes of a run that was asked to stop and has written a checkpoint."""
OURS = 2
"""The exit code for what a user can fix."""
NOTICED = re.compile(r"\bprocess \d+[ ,].*(ended|does not answer|gone\?)")


@dataclass(frozen=True)
class Ended:
    """How one trainer ended."""

    rank: int
    code: int | None
    """Minus the signal that ended it; None: it is gone with its worker or its node."""
    said: tuple[str, ...] = ()
    """The last lines."""
    node: str = ""


@dataclass(frozen=True)
class Start:
    """How one start of the run went."""

    ends: tuple[Ended, ...]
    """In the order in which they came, without those that the launcher killed."""
    checkpoint: int
    """Newest step that was seen afterwards; -1: none, or nobody could look."""

    @property
    def cause(self) -> Ended:
        """The trainer by which the others ended: gone or killed before what only heard of it, else the first."""
        for is_one in (lambda end: end.code is None, lambda end: end.code is not None and end.code < 0):
            if found := [end for end in self.ends if is_one(end)]:
                return found[0]
        own = [end for end in self.ends if end.code and not NOTICED.search(last_words(end.said))]
        return (own or [end for end in self.ends if end.code] or list(self.ends))[0]

    @property
    def code(self) -> int:
        """0: the run came to its end. Else for the launcher's own exit."""
        if all(end.code == 0 for end in self.ends):
            return 0
        stopped = [end.code for end in self.ends if end.code in STOPPED]
        if len(stopped) == len(self.ends):
            return int(stopped[0])
        return OURS if self.cause.code == OURS else 3

    def ended_by(self, signals: Sequence[int]) -> bool:
        """Whether these ended it, before it could take notice of them or after."""
        return all(end.code in {0, *(128 + n for n in signals), *(-n for n in signals)} for end in self.ends)

    def words(self) -> str:
        """Of the cause."""
        end = self.cause
        if end.code is None:
            more = f" ({last_words(end.said)})" if end.said else ""
            return f"trainer {end.rank} is gone, or its node {end.node} is{more}".replace("node  is", "node is")
        if end.code < 0:
            name = signal.Signals(-end.code).name if -end.code in set(signal.Signals) else f"signal {-end.code}"
            why = ", as for want of memory" if end.code == -signal.SIGKILL else ""
            return f"trainer {end.rank} was killed ({name}{why})"
        return f"trainer {end.rank} ended with code {end.code}: {last_words(end.said)}"


def why_not_again(starts: Sequence[Start], *, most: int) -> str | None:
    """Why the run is not begun again after these starts, the last of which failed; None: it is.

    most: further starts that are allowed.
    """
    last = starts[-1]
    if last.cause.code == OURS:
        return "that is for you to mend"
    if len(starts) > most:
        return f"it was begun again {most} times (launch.restarts)" if most else "launch.restarts is 0"
    if len(starts) < 2 or last.cause.code is None:  # a lost node is not the run's doing
        return None
    before = starts[-2]
    if _masked(before.words()) == _masked(last.words()) and before.checkpoint == last.checkpoint:
        return "it ended so twice without a checkpoint in between, and would again"
    return None


def last_words(said: Sequence[str]) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in said if line.strip()]
    return lines[-1] if lines else "without a word"


def _masked(text: str) -> str:
    """Without numbers: ports and process numbers are others each time."""
    return re.sub(r"\d+", "#", text)
