"""The other side of `isolated`: what runs in a reward's own process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from grpo_mm.outside import reason
from grpo_mm.processes import clock
from grpo_mm.rollout.reward_use import as_reward, in_sets, move
from grpo_mm.rollout.safe_call import score_safely
from grpo_mm.types import is_relative


def serve(pipe_fd: int, lifeline_fd: int) -> None:
    """Answers what `isolated.Pickled` asks."""

    def settings(message: bytes) -> dict[str, Any]:
        found = pickle.loads(message)
        return found | {"make": lambda: pickle.loads(found["use"])}

    attend(pipe_fd, lifeline_fd, settings=settings, question=pickle.loads)


def attend(
    pipe_fd: int,
    lifeline_fd: int,
    *,
    settings: Callable[[bytes], dict[str, Any]],
    question: Callable[[bytes], dict[str, Any]],
) -> None:
    """Answers until the other side is gone.

    Args:
        settings: reads the first message: `name`, `device`, `threads`, `make` (gives the reward).
        question: reads the others: `number`, `items`, `prompts`, `group`, `name`, `device`; or `leave`.
    """
    for fd in (pipe_fd, lifeline_fd):
        os.set_inheritable(fd, False)
    threading.Thread(target=_end_with, args=(lifeline_fd,), daemon=True).start()
    _first_to_go()
    pipe = Connection(pipe_fd)
    try:
        reward = _made(pipe, settings(pipe.recv_bytes()))
        while reward is not None:
            asked = question(pipe.recv_bytes())
            said = _left(reward) if "leave" in asked else _scored(reward, asked)
            pipe.send_bytes(json.dumps(said).encode())
    except (EOFError, ConnectionError):
        return


def _made(pipe: Connection, settings: dict[str, Any]) -> Any:
    logging.basicConfig(level=logging.WARNING, format=f"[reward {settings['name']}] %(message)s")
    torch.set_num_threads(settings["threads"])
    try:
        reward = as_reward(settings["make"]())
        move(reward, torch.device(settings["device"]))
        error = ""
    except BaseException as raised:  # a foreign module may raise anything when it is imported
        reward, error = None, reason(raised)
    pipe.send_bytes(json.dumps({"error": error}).encode())
    return reward


def _scored(reward: Any, asked: dict[str, Any]) -> dict[str, Any]:
    counts = clock.use(clock.Clock())
    prompts, relative = asked["prompts"], is_relative(reward)
    # A partial has no time limit of its own: the other side keeps it, and can kill.
    use = in_sets(reward, asked["group"]) if relative else partial(reward)
    try:
        move(reward, torch.device(asked["device"]))
        scores, errors = score_safely(use, asked["items"], prompts, by_row=not relative, name=asked["name"])
    except BaseException as raised:  # KeyboardInterrupt: nobody interrupts this process, so the reward raised it
        scores, errors = {"score": torch.full((len(prompts),), torch.nan)}, [reason(raised)]
    return {
        "number": asked["number"],
        "scores": {name: value.tolist() for name, value in scores.items()},
        "errors": errors,
        "counts": counts.take()[1],
    }


def _left(reward: Any) -> dict[str, Any]:
    try:
        move(reward, torch.device("cpu"))
    except Exception as raised:  # the next call tells
        return {"error": reason(raised)}
    return {"error": ""}


def _end_with(lifeline_fd: int) -> None:
    """However the run ends, its end of the pipe closes, and a reward that hangs is not left behind."""
    os.read(lifeline_fd, 1)
    os._exit(1)


def _first_to_go() -> None:
    """Where memory runs out, the system should end this process and not the run."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("800")
