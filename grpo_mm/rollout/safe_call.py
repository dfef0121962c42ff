"""Calling a reward so that its failures become NaN rows, counted, instead of ending the run."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import finite_number, plain, reason, shown
from grpo_mm.processes.rng import stream_seed
from grpo_mm.rollout.own_copies import is_own, own_items, own_prompts
from grpo_mm.rollout.returned_scores import Reported, WrongLength, as_scores
from grpo_mm.rollout.surroundings import interrupted, kept, seed_all
from grpo_mm.types import Clips, Prompt, Reward

log = logging.getLogger(__name__)

NAN = float("nan")
SLOW_SECONDS = 60.0
"""After so long a line says who is still at it; again each time that the wait has doubled, at least once an hour."""
MOST_ERRORS = 20
LONGEST_TRACEBACK = 4000
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def score_safely(
    reward: Reward,
    items: Any,
    prompts: Sequence[Prompt],
    *,
    timeout_seconds: float | None = None,
    by_row: bool = True,
    name: str = "reward",
) -> tuple[dict[str, Tensor], list[str]]:
    """The scores of M outputs, NaN where the reward failed, and what went wrong.

    A reward that raises on the batch is asked again row by row, so that only the rows that fail become NaN. One that
    exceeds its time limit, or gives a wrong number of scores, makes all its rows NaN. Infinities become NaN. A NaN that
    the reward gives itself is a row that could not be scored, without a message. Whatever is raised is a failure, SystemExit and
    the like included; only the user's own Ctrl-C goes through.

    Every call of a user's reward gets copies of items and prompts; what it changes of the process is put back (`surroundings.kept`), and what it
    draws from global generators follows from what it is asked.

    The time limit holds for the batch and once more for the row by row round, of which finished rows are kept. It works
    by leaving a daemon thread behind: Python cannot kill a thread, so a call that hangs keeps its memory and its core
    until it returns or the process ends (which it does not delay), and the next call may run beside it. A reward in a process of
    its own (`isolate: true`) is killed instead.

    Args:
        items: uint8 images [M, 3, H, W], `Clips`, or a list of M.
        timeout_seconds: None takes the reward's own `timeout_seconds`, if it has one.
        by_row: False for a reward over sets, which means nothing on single rows: a failed batch is NaN.
        name: for messages.

    Returns:
        scores: "score" and any parts, float32 [M] on the CPU.
        errors: a bounded text per failure, empty if all went well; the first one that was raised comes with its traceback.
    """
    rows = len(prompts)
    if rows == 0:
        return {"score": torch.zeros(0)}, []
    try:
        limit = own_limit(reward) if timeout_seconds is None else timeout_seconds
    except Exception as error:  # an attribute of a foreign class
        return all_nan(rows), [reason(error)]
    with kept(name), told_when_slow(name, rows):
        return _scored(reward, items, prompts, limit, by_row, name)


def _scored(
    reward: Reward, items: Any, prompts: Sequence[Prompt], limit: float | None, by_row: bool, name: str
) -> tuple[dict[str, Tensor], list[str]]:
    rows = len(prompts)
    errors: list[str] = []
    result: dict[int, Any] = {}
    if not _within(limit, lambda: _ask(reward, items, prompts, slice(0, rows), result)):
        return all_nan(rows), [f"no answer for {rows} outputs within {limit:g} seconds"]
    batch = result.get(0, _Died())
    if not isinstance(batch, BaseException):
        errors += batch.errors if isinstance(batch, Reported) else []
        return _finite(batch, errors), bounded(errors)
    if rows == 1 or not by_row or isinstance(batch, (WrongLength, _Died)):
        return all_nan(rows), [described(batch)]
    done: dict[int, Any] = {}
    singles = [slice(row, row + 1) for row in range(rows)]
    if not _within(limit, lambda: [_ask(reward, items, prompts, one, done) for one in singles]):
        errors.append(f"one by one, {len(done)} of {rows} outputs were done within {limit:g} seconds")
    answers = dict(done)  # a thread left behind may still write into the other one
    if any(not isinstance(answer, BaseException) for answer in answers.values()):
        _tell_of_single_rows(name, rows, batch)
    if len(answers) < rows or any(isinstance(answer, BaseException) for answer in answers.values()):
        errors.insert(0, described(batch))
    for row, answer in sorted(answers.items()):
        if isinstance(answer, BaseException):
            errors.append(f"{shown(prompts[row].id)}, row {row}: {reason(answer)}")
    return _finite(_join(answers, rows), errors), bounded(errors)


def own_limit(reward: Any) -> float | None:
    """The reward's own `timeout_seconds`; raises ValueError if that is no number above 0."""
    limit = getattr(reward, "timeout_seconds", None)
    if limit is not None and not (finite_number(limit) or 0) > 0:
        raise ValueError(f"the reward's timeout_seconds is {shown(limit)}; wanted a number above 0, or None.")
    return limit


def bounded(errors: list[str]) -> list[str]:
    """The first 20, and how many more there were."""
    more = len(errors) - MOST_ERRORS
    return [*errors[:MOST_ERRORS], f"and {more} more failures"] if more > 0 else errors


class _Died(RuntimeError):
    def __str__(self) -> str:
        return "the reward's thread ended without a result"


def _ask(reward: Reward, items: Any, prompts: Sequence[Prompt], rows: slice, result: dict[int, Any]) -> None:
    """Puts scores, or the exception, at result[first row]."""
    try:
        own = items[rows], prompts[rows]
        if not is_own(reward):
            own = own_items(own[0]), own_prompts(own[1])
        seed_all(_seed(*own))
        result[rows.start] = as_scores(reward(*own), rows.stop - rows.start)
    except BaseException as error:  # whatever a reward raises is a failed row
        main = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and main and interrupted():
            raise
        result[rows.start] = error


def _seed(items: Any, prompts: Sequence[Prompt]) -> int:
    """Different outputs of a prompt differ in a sample of their bytes, or in length or beginning."""
    if isinstance(items, Tensor):
        sample = [int(items.flatten()[::101].sum())]
    elif isinstance(items, Clips):
        sample = [int(clip.frames_FCHW.flatten()[::101].sum()) for clip in items if clip is not None]
    else:
        sample = [f"{len(item)} {item[:100]!a}" for item in items if isinstance(item, str)]
    return stream_seed(0, "reward", *sample, *(ascii(prompt.id) for prompt in prompts)) % 2**32


def _within(timeout_seconds: float | None, work: Callable[[], Any]) -> bool:
    """Runs work; False if it was still running after the time limit and was left behind."""
    if timeout_seconds is None:
        with torch.no_grad():
            work()
        return True
    thread = threading.Thread(target=copy_context().run, args=(_like_here(work),), name="grpo_mm-reward", daemon=True)
    thread.start()
    thread.join(min(timeout_seconds, threading.TIMEOUT_MAX))
    return not thread.is_alive()


def _like_here(work: Callable[[], Any]) -> Callable[[], None]:
    """The current CUDA device and the gradient switch belong to a thread: a new one starts on device 0."""
    device = torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def run() -> None:
        with torch.no_grad(), torch.cuda.device(device) if device is not None else contextlib.nullcontext():
            work()

    return run


@contextlib.contextmanager
def told_when_slow(name: str, rows: int) -> Iterator[None]:
    """A line in the log after a minute, and sparsely from then on."""
    done = threading.Event()

    def tell() -> None:
        waited, pause = 0.0, SLOW_SECONDS
        while not done.wait(pause):
            waited += pause
            pause = min(waited, 3600.0)
            log.warning(
                "reward %r has been at it for %g s (%d outputs); a limit for it is `timeout_seconds` beside its `use`",
                name, waited, rows,
            )  # fmt: skip

    threading.Thread(target=tell, name="grpo_mm-slow-reward", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _join(answers: Mapping[int, Any], rows: int) -> dict[str, Tensor]:
    scores = all_nan(rows)
    for row, answer in answers.items():
        for name, value in answer.items() if isinstance(answer, Mapping) else ():
            scores.setdefault(name, _nan(rows))[row] = value[0]
    return scores


def _finite(scores: Mapping[str, Tensor], errors: list[str]) -> dict[str, Tensor]:
    infinite, rows = scores["score"].isinf(), len(scores["score"])
    if infinite.any():
        which = infinite.nonzero()[:, 0].tolist()
        named = str(which) if len(which) <= MOST_ERRORS else f"{which[:MOST_ERRORS]} …"
        errors.append(f"{len(which)} of {rows} scores are infinite, rows {named}")
    return {name: torch.where(value.isfinite(), value, NAN) for name, value in scores.items()}


def all_nan(rows: int) -> dict[str, Tensor]:
    """The scores of a call that failed."""
    return {"score": _nan(rows)}


def _nan(rows: int) -> Tensor:
    """Whatever default dtype and device a reward has set."""
    return torch.full((rows,), NAN, dtype=torch.float32, device="cpu")


_told_of_single_rows: set[str] = set()


def _tell_of_single_rows(name: str, rows: int, error: BaseException) -> None:
    """Once for each reward: its scores may be others than a whole batch would get."""
    if name not in _told_of_single_rows:
        _told_of_single_rows.add(name)
        log.warning(
            "reward %r raised on %d outputs at once (%s) and is asked row by row where it does: one that compares the outputs of a "
            "batch gives other scores so",
            name, rows, reason(error),
        )  # fmt: skip


def described(error: BaseException) -> str:
    """The cause, then the traceback without our own frames above the user's; a long one loses its middle."""
    if isinstance(error, UserError):  # a sentence that says it all
        return reason(error)
    try:
        found = traceback.TracebackException.from_exception(error)
        text = f"{reason(error)}\n{''.join(_theirs(found).format()).rstrip()}"
    except BaseException:  # a foreign exception may do anything when it is asked
        text = reason(error)
    if len(text) > LONGEST_TRACEBACK:
        half = LONGEST_TRACEBACK // 2
        text = f"{text[:half]}\n… ({len(text) - 2 * half} more characters) …\n{text[-half:]}"
    return plain(text, 2 * LONGEST_TRACEBACK)


def _theirs(found: traceback.TracebackException) -> traceback.TracebackException:
    """Without the frames by which we came to the user's code; all of them where there is none of his."""
    first = next((i for i, frame in enumerate(found.stack) if not frame.filename.startswith(_OURS)), 0)
    found.stack = traceback.StackSummary.from_list(found.stack[first:])
    for before in (found.__cause__, found.__context__):
        if before is not None:
            _theirs(before)
    return found
