"""What a reward returned, as scores; or what it is instead."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterable, Coroutine, Iterable, Mapping, Sequence, Set, Sized
from concurrent.futures import Future
from contextvars import copy_context
from functools import cache
from itertools import islice
from numbers import Complex, Real
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import plain, reason, shown

log = logging.getLogger(__name__)

MOST_PARTS = 100
"""Of one reward: each becomes a metric."""


class Reported(dict[str, Tensor]):
    """Scores of a reward that knows why rows have none, as one that asks elsewhere does: its failures are told as if raised here."""

    def __init__(self, scores: Mapping[str, Tensor], errors: Sequence[str]) -> None:
        super().__init__(scores)
        self.errors = list(errors)


class WrongLength(UserError):
    """A reward gave another number of scores than it got outputs: which score is whose cannot be known."""


def as_scores(output: Any, rows: int) -> dict[str, Tensor]:
    """What a reward returned as float32 [rows], CPU, a copy of its own.

    That is a tensor, an array, a list, an iterator of numbers, a dict (or named tuple) of these with "score", or the coroutine
    of an async function that gives one of them. Of a pair (scores, what belongs to them), as some code bases return it, the
    scores are taken, which is told once.

    Raises:
        WrongLength: not `rows` entries.
        UserError: no "score", something that is no number, or more than 100 parts.
    """
    output = _settled(output)
    if isinstance(output, tuple) and "score" in getattr(output, "_fields", ()):
        output = dict(zip(output._fields, output, strict=True))
    parts = output if isinstance(output, Mapping) else {"score": _first_of_pair(output, rows)}
    if len(parts) > MOST_PARTS:
        raise UserError(f"the reward returned {len(parts)} parts; wanted at most {MOST_PARTS}, each becomes a metric.")
    if "score" not in parts:
        names = ", ".join(shown(name, 40) for name in islice(parts, 5))
        raise UserError(f'the reward returned a dict with {names or "nothing in it"}; wanted "score" among them.')
    named = {_name(name): values for name, values in parts.items()}
    if len(named) < len(parts):
        raise UserError(f"the reward returned {len(parts)} parts of which two have one name: {shown(list(parts))}.")
    numbers = {name: _numbers(name, values, rows) for name, values in named.items()}
    return Reported(numbers, output.errors) if isinstance(output, Reported) else numbers


def _name(name: Any) -> str:
    return plain(name, 100) if isinstance(name, str) else shown(name, 100)


def _settled(output: Any) -> Any:
    """The result of an async function; other things that have to be waited for belong to a loop that is not ours."""
    if inspect.iscoroutine(output):
        return _run(output)
    if isinstance(output, (Future, AsyncIterable)) or inspect.isawaitable(output):
        raise UserError(f"the reward returned {shown(output, 80)}, which has to be waited for; wanted its result.")
    return output


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """In a thread of its own: this one may already run an event loop."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            with torch.no_grad():
                done.set_result(asyncio.run(work))
        except BaseException as error:  # for the caller to see
            done.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), name="grpo_mm-async-reward", daemon=True).start()
    return done.result()


def _is_many(value: Any) -> bool:
    """A container of numbers by its form."""
    return isinstance(value, Sized) and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) != 0


def _first_of_pair(output: Any, rows: int) -> Any:
    """The scores of (scores, what belongs to them); anything else as it is."""
    if not isinstance(output, (tuple, list)) or not output or not _is_many(output[0]) or isinstance(output[0], Mapping):
        return output
    first, *others = output
    if len(first) != rows or len(output) == rows == 1 or (len(first) == 1 and len(output) == rows):
        return output
    kinds = ", ".join(type(part).__name__ for part in output[:5])
    if len(others) == 1 and _says_no_numbers(others[0]):
        _tell_of_pair(f"{type(output).__name__} ({kinds})")
        return first
    if len(output) == rows:
        return output
    raise WrongLength(
        f"the reward returned a {type(output).__name__} of {len(output)} ({kinds}), the first of them with {rows} values; which "
        'are the scores cannot be known. Return the scores alone, or a dict: {"score": …, "another part": …}.'
    )


def _says_no_numbers(value: Any) -> bool:
    """Nothing, a dict, or a list of texts and the like: it cannot be meant as the score."""
    if value is None or isinstance(value, (Mapping, str)):
        return True
    return isinstance(value, (list, tuple)) and all(
        part is None or isinstance(part, (str, Mapping, list, tuple)) for part in value
    )


@cache
def _tell_of_pair(found: str) -> None:
    log.warning(
        "a reward returned a %s: its first entry is taken for the scores, the rest is left out. For parts that are "
        'logged return a dict: {"score": …, "part": …}.',
        found,
    )


def _numbers(name: str, values: Any, rows: int) -> Tensor:
    values = _listed(name, values, rows)
    if len(values) != rows:
        found = f"more than {rows}" if len(values) > rows and type(values) is _Taken else str(len(values))
        raise WrongLength(f"the reward returned {found} values for {name!r}; wanted {rows}, one per output.")
    if getattr(values, "ndim", 1) == 2 and values.shape[1] == 1:
        values = values.reshape(-1)
    if isinstance(values, Tensor) and values.ndim == 1:
        return _of_tensor(name, values)
    numbers = [_number(name, row, value) for row, value in enumerate(islice(iter(values), rows + 1))]
    if len(numbers) != rows:
        raise WrongLength(f"the reward returned {len(numbers)} values for {name!r}; wanted {rows}, one per output.")
    return torch.tensor(numbers, dtype=torch.float64, device="cpu").to(torch.float32)


class _Taken(list):
    """What an iterator gave, and one more if there was more than is wanted."""


def _listed(name: str, values: Any, rows: int) -> Any:
    if isinstance(values, (Set, Mapping)):
        order = "has no order" if isinstance(values, Set) else "is a dict"
        raise UserError(
            f"the reward returned {shown(values)} for {name!r}, which {order}; wanted {rows} numbers, one per output."
        )
    if _is_many(values) and not isinstance(values, (bytearray, memoryview)):
        return values
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, bytearray, memoryview, Tensor, Sized)):
        return _Taken(islice(values, rows + 1))
    raise UserError(f"the reward returned {shown(values)} for {name!r}; wanted {rows} numbers, one per output.")


def _of_tensor(name: str, values: Tensor) -> Tensor:
    if values.is_complex():
        raise UserError(f"{name} is a tensor of complex numbers; wanted real ones.")
    try:
        dense = values.detach() if values.layout is torch.strided else values.detach().to_dense()
        return dense.to("cpu", torch.float32, copy=True)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"{name} is a {values.layout} tensor on {values.device} of {values.dtype}, which cannot be read ({reason(error)})."
        ) from error


def _number(name: str, row: int, value: Any) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, (str, bytes)):
        raise UserError(
            f'{name}[{row}] = {shown(value)} is no number; give None or float("nan") for what cannot be scored.'
        )
    if isinstance(value, Complex) and not isinstance(value, Real) or isinstance(value, Tensor) and value.is_complex():
        raise UserError(f"{name}[{row}] = {shown(value)} is a complex number; wanted a real one.")
    try:
        return float(value)
    except Exception as error:  # whatever a foreign class raises
        raise UserError(f"{name}[{row}] = {shown(value)} is no number ({reason(error)}).") from error
