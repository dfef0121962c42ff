"""A run as lines of a log: the first steps, then a line a minute at the least, with the time that is left."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from grpo_mm.outside import plain

log = logging.getLogger("grpo_mm.progress")
"""Where the lines go unless `say` is given; its level silences them."""


@dataclass(frozen=True)
class Plan:
    """What lies ahead of a run that begins or goes on."""

    step: int
    """Steps that are done."""
    steps: int
    rewards: Sequence[str]
    evaluate_every: int = 0
    """Steps between evaluations on the way; 0: none."""
    evaluates: bool = True
    """Whether there is anything held out; then the last step is evaluated."""


class Told(Protocol):
    """Who hears of a run while it goes on, on the main process; called in this order, and never in two threads at once."""

    def begins(self, plan: Plan) -> None: ...

    def evaluating(self, step: int, *, samples: int) -> None: ...

    def evaluated(self, step: int, *, score: float, seconds: float) -> None: ...

    def stepped(self, step: int, row: Mapping[str, float]) -> None: ...

    def working(self, what: str, done: int, total: int) -> None:
        """Often: within a step, or an evaluation."""
        ...

    def ends(self) -> None:
        """However it ends."""
        ...


class Nobody:
    """Hears nothing: processes beside the main one."""

    def begins(self, plan: Plan) -> None: ...
    def evaluating(self, step: int, *, samples: int) -> None: ...
    def evaluated(self, step: int, *, score: float, seconds: float) -> None: ...
    def stepped(self, step: int, row: Mapping[str, float]) -> None: ...
    def working(self, what: str, done: int, total: int) -> None: ...
    def ends(self) -> None: ...


class ProgressLines:
    """Says the first `first` steps, then a line at the latest every `every_seconds`: of the last step where one ends in time, else of
    what the run is at within it. Evaluations have lines of their own, and so has the last step.

    Example of a line: "step 12/30  shape 0.431  3.2 s  about 58 s left".
    """

    def __init__(
        self,
        say: Callable[[str], None] | None = None,
        *,
        first: int = 5,
        every_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        beats: bool = True,
    ) -> None:
        """say: takes a line; None: `logging`, logger "grpo_mm.progress", level INFO. beats: a thread of its own sees that a minute of a
        long step is not silent; without it `beat` is for the caller."""
        self.say = say if say is not None else lambda line: log.info("%s", line)
        self.first, self.every, self.clock, self.beats = first, every_seconds, clock, beats
        self._lock, self._over = threading.Lock(), threading.Event()
        self._plan = Plan(0, 0, ())
        self._said_at = self._since = clock()
        self._at, self._work = "", ""
        self._step_seconds: deque[float] = deque(maxlen=20)
        self._eval_seconds = 0.0

    def begins(self, plan: Plan) -> None:
        self._plan = plan
        self._said_at = self._since = self.clock()
        self._next_step(plan.step)
        if self.beats and self.every > 0:
            threading.Thread(target=self._watch, name="grpo_mm-progress", daemon=True).start()

    def evaluating(self, step: int, *, samples: int) -> None:
        when = "before training" if step == 0 else f"after step {step}"
        self._now_at(f"evaluating {when}")
        self._tell(f"evaluating {samples} samples {when}")

    def evaluated(self, step: int, *, score: float, seconds: float) -> None:
        self._eval_seconds = seconds
        self._tell(
            f"evaluated {'before training' if step == 0 else f'after step {step}'}: score {score:.4g}, in {span(seconds)}"
        )
        self._next_step(step)

    def stepped(self, step: int, row: Mapping[str, float]) -> None:
        seconds = row.get("time/step_seconds", math.nan)
        if math.isfinite(seconds):
            self._step_seconds.append(seconds)
        usual = _mean(self._step_seconds)
        early = step - self._plan.step <= self.first
        if early or step >= self._plan.steps or self.clock() + usual >= self._said_at + self.every:
            left = self._left(step)
            self._tell(
                f"step {step}/{self._plan.steps}  {reward_words(self._plan.rewards, row)}  {seconds:.2g} s"
                + (f"  about {span(left)} left" if left else "")
            )
        self._next_step(step)

    def working(self, what: str, done: int, total: int) -> None:
        self._work = f": {what} {done}/{total}"

    def ends(self) -> None:
        self._over.set()

    def beat(self) -> None:
        """Says where the run is, if nothing was said for as long as it may be."""
        now = self.clock()
        if now >= self._said_at + self.every:
            self._tell(f"{self._at}{self._work}, for {span(now - self._since)} now")

    def _watch(self) -> None:
        while not self._over.wait(max(0.05, self._said_at + self.every - self.clock())):
            self.beat()

    def _next_step(self, step: int) -> None:
        at = f"step {step + 1}/{self._plan.steps}" if step < self._plan.steps else "writing the product"
        self._now_at(at)

    def _now_at(self, what: str) -> None:
        self._at, self._work, self._since = what, "", self.clock()

    def _tell(self, line: str) -> None:
        with self._lock:
            self._said_at = self.clock()
            self.say(line)

    def _left(self, step: int) -> float:
        """Seconds, from the mean of the last steps and the last evaluation; 0 at the end."""
        plan = self._plan
        evaluations = float(plan.evaluates)
        if plan.evaluate_every:
            evaluations += (plan.steps - 1) // plan.evaluate_every - (step - 1) // plan.evaluate_every
        return (plan.steps - step) * _mean(self._step_seconds) + evaluations * self._eval_seconds


def reward_words(rewards: Sequence[str], row: Mapping[str, float]) -> str:
    """ "shape 0.431  quality 0.712"; the mean of each."""
    return "  ".join(f"{plain(name, 60)} {row.get(f'reward/{name}/mean', math.nan):.3f}" for name in rewards)


def span(seconds: float) -> str:
    """ "7 s", "2 min 05 s", "3 h 20 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def heard() -> Iterator[None]:
    """Lines that are logged can be seen: through what logging is set up to do, and on the standard error stream where nobody set it up.

    A level that is set for "grpo_mm" or "grpo_mm.progress" stays as it is.
    """
    level, handler = log.level, None
    if level == logging.NOTSET == logging.getLogger("grpo_mm").level:
        log.setLevel(logging.INFO)
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(level)
        if handler is not None:
            log.removeHandler(handler)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
