"""Work that gathers from all ranks, in a thread of each: where one leaves off, the others do not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from grpo_mm.errors import TrainingStopped, UserError
from grpo_mm.processes.distributed import Processes
from grpo_mm.weights.snapshots import WeightsMoved

Found = TypeVar("Found")
Gather = Callable[[Any], list[Any]]


def met(processes: Processes, work: Callable[[Gather], Found]) -> Found:
    """What `work` gives here. It gathers with what it is handed, as often on every rank; the ranks also meet when they are done.

    Raises:
        WeightsMoved: as it did on another rank.
        TrainingStopped, UserError: something else was raised on another rank; it says on which, and what. What is raised here is raised
            as it is.
    """
    is_over = False

    def gather(thing: Any) -> list[Any]:
        nonlocal is_over
        is_over = True  # nobody meets again after what is raised here
        ranks = processes.gather((None, thing))
        for rank, (told, _) in enumerate(ranks):
            if told is not None:
                raise _of_another(rank, told)
        is_over = False
        return [other for _, other in ranks]

    try:
        found = work(gather)
        gather(None)
    except Exception as error:
        if not is_over:
            processes.gather((_told(error), None))
        raise
    return found


def _told(error: Exception) -> tuple[str, str]:
    kind = "moved" if isinstance(error, WeightsMoved) else "user" if isinstance(error, UserError) else "other"
    return kind, str(error) if kind != "other" else f"{type(error).__name__}: {error}"


def _of_another(rank: int, told: tuple[str, str]) -> Exception:
    kind, text = told
    if kind == "moved":
        return WeightsMoved(text)
    return UserError(text) if kind == "user" else TrainingStopped(f"process {rank} failed: {text}")
