"""Calling a reward so that its failures become NaN rows, counted, instead of ending the run."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.types import Prompt, Reward

NAN = float("nan")


class WrongLength(UserError):
    """A reward gave another number of scores than it got outputs: which score is whose cannot be known."""


def score_safely(
    reward: Reward, items: Any, prompts: Sequence[Prompt], *, timeout_seconds: float | None = None, by_row: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """The scores of M outputs, NaN where the reward failed, and what went wrong.

    A reward that raises on the batch is asked again row by row, so that only the rows that fail become NaN. One that
    exceeds its time limit, or gives a wrong number of scores, makes all its rows NaN. Infinities become NaN. A NaN that
    the reward gives itself is a row that could not be scored, without a message.

    The time limit holds for the batch and once more for the row by row round, of which finished rows are kept. It works
    by leaving a daemon thread behind: Python cannot kill a thread, so a call that hangs keeps its memory and its core
    until it returns or the process ends (which it does not delay), and the next call may run beside it.

    Args:
        items: uint8 images [M, 3, H, W], or a list of M.
        timeout_seconds: None takes the reward's own `timeout_seconds`, if it has one.
        by_row: False for a reward over sets, which means nothing on single rows: a failed batch is NaN.

    Returns:
        scores: "score" and any parts, float32 [M] on the CPU.
        errors: a text per failure, empty if all went well; the first one that was raised comes with its traceback.
    """
    rows = len(prompts)
    if timeout_seconds is None:
        timeout_seconds = getattr(reward, "timeout_seconds", None)
    errors: list[str] = []
    if rows == 0:
        return {"score": torch.zeros(0)}, errors
    result: dict[int, Any] = {}
    if not _within(timeout_seconds, lambda: _ask(reward, items, prompts, slice(0, rows), result)):
        errors.append(f"no answer for {rows} outputs within {timeout_seconds:g} seconds")
        return _all_nan(rows), errors
    batch = result[0]
    if not isinstance(batch, BaseException):
        return _finite(batch, errors), errors
    errors.append(_describe(batch))
    if rows == 1 or not by_row or isinstance(batch, WrongLength):
        return _all_nan(rows), errors
    result.clear()
    singles = [slice(row, row + 1) for row in range(rows)]
    if not _within(timeout_seconds, lambda: [_ask(reward, items, prompts, one, result) for one in singles]):
        errors.append(f"one by one, {len(result)} of {rows} outputs were done within {timeout_seconds:g} seconds")
    done = dict(result)  # a thread left behind may still write into the other one
    for row, answer in sorted(done.items()):
        if isinstance(answer, BaseException):
            errors.append(f"{prompts[row].id!r}, row {row}: {type(answer).__name__}: {answer}")
    return _finite(_join(done, rows), errors), errors


def as_scores(output: Any, rows: int) -> dict[str, Tensor]:
    """What a reward returned (a tensor, a list of numbers, or a dict of these with "score") as float32 [rows], CPU.

    Raises:
        WrongLength: not `rows` entries.
        UserError: no "score", or something that is no number.
    """
    parts = output if isinstance(output, Mapping) else {"score": output}
    if "score" not in parts:
        raise UserError(f'the reward returned a dict with {", ".join(map(repr, parts))}; wanted "score" among them.')
    return {str(name): _numbers(name, values, rows) for name, values in parts.items()}


def _numbers(name: str, values: Any, rows: int) -> Tensor:
    if not hasattr(values, "__len__") or isinstance(values, (str, bytes)) or getattr(values, "ndim", 1) == 0:
        raise UserError(f"the reward returned {values!r} for {name!r}; wanted {rows} numbers, one per output.")
    if len(values) != rows:
        raise WrongLength(f"the reward returned {len(values)} values for {name!r}; wanted {rows}, one per output.")
    if isinstance(values, Tensor) and values.ndim == 1:
        return values.detach().to("cpu", torch.float32)
    numbers = []
    for row, value in enumerate(values):
        if isinstance(value, (str, bytes)) or value is None:
            raise UserError(f'{name}[{row}] = {value!r} is no number; give float("nan") for what cannot be scored.')
        try:
            numbers.append(float(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{name}[{row}] = {value!r} is no number ({error}).") from error
    return torch.tensor(numbers, dtype=torch.float32)


def _ask(reward: Reward, items: Any, prompts: Sequence[Prompt], rows: slice, result: dict[int, Any]) -> None:
    """Puts scores, or the exception, at result[first row]."""
    try:
        output = reward(items[rows], prompts[rows])
        result[rows.start] = as_scores(output, rows.stop - rows.start)
    except (Exception, SystemExit) as error:  # whatever a reward raises is a failed row
        result[rows.start] = error


def _within(timeout_seconds: float | None, work: Callable[[], Any]) -> bool:
    """Runs work; False if it was still running after the time limit and was left behind."""
    if timeout_seconds is None:
        with torch.no_grad():
            work()
        return True
    thread = threading.Thread(target=_like_here(work), name="grpo_mm-reward", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return not thread.is_alive()


def _like_here(work: Callable[[], Any]) -> Callable[[], None]:
    """The current CUDA device and the gradient switch belong to a thread: a new one starts on device 0."""
    device = torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def run() -> None:
        with torch.no_grad(), torch.cuda.device(device) if device is not None else contextlib.nullcontext():
            work()

    return run


def _join(answers: Mapping[int, Any], rows: int) -> dict[str, Tensor]:
    scores = _all_nan(rows)
    for row, answer in answers.items():
        for name, value in answer.items() if isinstance(answer, Mapping) else ():
            scores.setdefault(name, torch.full((rows,), NAN))[row] = value[0]
    return scores


def _finite(scores: Mapping[str, Tensor], errors: list[str]) -> dict[str, Tensor]:
    infinite, rows = scores["score"].isinf(), len(scores["score"])
    if infinite.any():
        errors.append(f"{int(infinite.sum())} of {rows} scores are infinite, rows {infinite.nonzero()[:, 0].tolist()}")
    return {name: torch.where(value.isfinite(), value, NAN) for name, value in scores.items()}


def _all_nan(rows: int) -> dict[str, Tensor]:
    return {"score": torch.full((rows,), NAN)}


def _describe(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
