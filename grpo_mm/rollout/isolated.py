"""A reward in a process of its own, which may crash, hang or be killed without taking the run with it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import plain, reason, shown
from grpo_mm.processes.clock import count
from grpo_mm.rollout.returned_scores import MOST_PARTS
from grpo_mm.rollout.safe_call import MOST_ERRORS, all_nan, bounded, own_limit, told_when_slow
from grpo_mm.types import Clip, Clips, Prompt, pick_items

MOST_BYTES = 64 * 2**20
"""Of an answer."""
START_SECONDS = 3600.0
"""For importing the reward's modules and loading its network."""
_LOOK_SECONDS = 0.5
"""Between looks at whether the process is still there."""
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from grpo_mm.rollout.isolated_process import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)


def sendable(name: str, use: Any) -> bytes:
    """A reward as another process can make it: its class with its settings, without what it has loaded, or its function by name.

    Raises:
        ConfigError: it is defined in the script that was started, inside a function, or holds what cannot be sent.
    """
    home = getattr(use if hasattr(use, "__qualname__") else type(use), "__module__", None)
    why = "it is defined in the script that was started" if home == "__main__" else ""
    try:
        sent = b"" if why else pickle.dumps(_unused(use))
    except Exception as error:  # whatever a foreign class raises
        why = reason(error)
    if why:
        raise ConfigError(
            f"reward {name!r}: isolate: true, but a process of its own cannot make it: {why}. Use a function or a class of a module, "
            "package.module:Name."
        )
    return sent


def _unused(value: Any) -> Any:
    """The component as its config makes it."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _unused(getattr(value, f.name)) for f in fields(value) if f.init})
    if type(value) in (list, tuple):
        return type(value)(_unused(part) for part in value)
    if type(value) is dict:
        return {name: _unused(part) for name, part in value.items()}
    return value


class Talk(Protocol):
    """How a reward's process is started and what it is told; it answers in JSON."""

    asks_halves: bool
    """Whether outputs that cannot be sent are looked for, so that the others are scored."""

    def command(self, pipe_fd: int, lifeline_fd: int) -> list[str]:
        """Raises UserError where there is nothing to start."""
        ...

    def settings(self, *, name: str, device: str, threads: int) -> bytes:
        """The first message; the answer is {"error": why the reward cannot be made, or ""}."""
        ...

    def question(self, asked: dict[str, Any]) -> bytes:
        """`number`, `items`, `prompts`, `group`, `name`, `device`; raises what says why it cannot be sent."""
        ...

    def leave(self) -> bytes:
        """The message that its network shall go to main memory."""
        ...


class Pickled:
    """The same Python with the same packages: whatever can be pickled goes there. What comes back is JSON all the same."""

    asks_halves: ClassVar[bool] = False

    def __init__(self, use: Any, *, name: str) -> None:
        """Raises ConfigError as `sendable`."""
        self._sent = sendable(name, use)

    def command(self, pipe_fd: int, lifeline_fd: int) -> list[str]:
        return [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(pipe_fd), str(lifeline_fd)]

    def settings(self, *, name: str, device: str, threads: int) -> bytes:
        return pickle.dumps({"use": self._sent, "device": device, "threads": threads, "name": name})

    def question(self, asked: dict[str, Any]) -> bytes:
        return pickle.dumps(asked, protocol=pickle.HIGHEST_PROTOCOL)

    def leave(self) -> bytes:
        return pickle.dumps({"leave": True})


class IsolatedReward:
    """Scores in a process that is started at the first call, kept, and started again after it ended.

    A call whose process ends, or that exceeds the time limit (of the whole call; the process is killed then, with all that it
    started), makes all its rows NaN; the reason names the exit code or the signal. What is raised inside is dealt with there as
    in `score_safely`. Starting and loading are no part of the time limit.
    """

    def __init__(
        self, use: Any, *, name: str, timeout_seconds: float | None = None, share: int = 1, talk: Talk | None = None
    ) -> None:
        """share: how many processes the threads of torch are divided among; talk: None is `Pickled`. Raises ConfigError as `sendable`."""
        self.name = name
        self._share = share
        self._talk = Pickled(use, name=name) if talk is None else talk
        self._limit = own_limit(use) if timeout_seconds is None else timeout_seconds
        self._process: _Process | None = None
        self._number = 0

    def score(
        self,
        items: Any,
        prompts: Sequence[Prompt],
        *,
        device: torch.device,
        group_U: Tensor | None = None,
        patience: float = 1.0,
    ) -> tuple[dict[str, Tensor], list[str]]:
        """As `score_safely`; `group_U` for a reward over sets. patience: times the time limit.

        Raises:
            UserError: there is nothing to start, as an environment that cannot be made.
        """
        rows = len(prompts)
        if rows == 0:
            return {"score": torch.zeros(0)}, []
        self._number += 1
        items = items.cpu() if isinstance(items, Tensor) else _sent_alone(items)
        asked = {"number": self._number, "items": items, "prompts": list(prompts), "group": group_U, "name": self.name}
        try:
            message = self._talk.question(asked | {"device": str(device)})
        except Exception as error:  # whatever an item of the prompts raises
            if self._talk.asks_halves and group_U is None and rows > 1:
                return self._halves(items, prompts, partial(self.score, device=device, patience=patience))
            return all_nan(rows), [f"the prompts cannot be sent to the reward's own process: {reason(error)}"]
        limit = None if self._limit is None else self._limit * patience
        try:
            with told_when_slow(self.name, rows):
                process = self._running(device)
                answer = process.exchange(message, limit, f"no answer for {rows} outputs")
            return self._read(answer, rows)
        except _Ended as ended:
            self.end()
            return all_nan(rows), [str(ended)]
        except BaseException:  # Ctrl-C: an answer that comes later would be taken for that of the next call
            self.end()
            raise

    def _halves(self, items: Any, prompts: Sequence[Prompt], score: Any) -> tuple[dict[str, Tensor], list[str]]:
        """Of outputs that cannot be sent together: each half alone, down to the one that is at fault."""
        runs = torch.arange(len(prompts)).tensor_split(2)
        answers = [score(pick_items(items, run), [prompts[i] for i in run.tolist()]) for run in runs]
        return joined(runs, answers)

    def start(self, device: torch.device) -> None:
        """Starts the process and loads what it loads, if it does not run; raises UserError where that fails."""
        try:
            self._running(device)
        except _Ended as ended:
            self.end()
            raise UserError(f"the reward {self.name!r}: {ended}") from None

    def leave_device(self) -> None:
        """Its network goes to main memory until it is asked again."""
        if self._process is not None:
            with contextlib.suppress(_Ended):  # the next call tells
                self._process.exchange(self._talk.leave(), START_SECONDS, "its network was not moved")

    def end(self) -> None:
        """Kills the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _running(self, device: torch.device) -> _Process:
        if self._process is not None and self._process.popen.poll() is not None:
            self.end()
        if self._process is None:
            self._process = _Process.start(self._talk)
            weakref.finalize(self, self._process.kill)
            threads = max(1, torch.get_num_threads() // self._share)
            settings = self._talk.settings(name=self.name, device=str(device), threads=threads)
            ready = json.loads(self._process.exchange(settings, START_SECONDS, "it was not ready"))
            if ready.get("error"):
                raise _Ended(plain(f"the reward could not be made in a process of its own: {ready['error']}"))
        return self._process

    def _read(self, answer: bytes, rows: int) -> tuple[dict[str, Tensor], list[str]]:
        """Scores of the right form, or the answer is none: something else wrote to our pipe."""
        try:
            found = json.loads(answer)
            scores = {str(name): torch.tensor(values, dtype=torch.float32) for name, values in found["scores"].items()}
            errors = [plain(error, 10_000) for error in found["errors"]]
            counts = {str(name): int(number) for name, number in found["counts"].items()}
            right = found["number"] == self._number and "score" in scores and len(scores) <= MOST_PARTS
            if not right or any(value.shape != (rows,) for value in scores.values()):
                raise ValueError(f"it is {shown(found, 100)}")
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, RecursionError) as error:
            raise _Ended(f"the reward's process gave an answer that cannot be read ({reason(error)})") from error
        for name, number in counts.items():
            count(name, number)
        return scores, bounded(errors[: MOST_ERRORS + 1])


def _sent_alone(items: Any) -> Any:
    """Clips without the memory that they are views into, which would be sent with each."""
    if not isinstance(items, Clips):
        return items
    return Clips(None if one is None else Clip(one.frames_FCHW.cpu().clone(), one.fps) for one in items)


def joined(
    runs: Sequence[Tensor], answers: Sequence[tuple[dict[str, Tensor], list[str]]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Answers about neighbouring rows as one; a part that one gives and another does not is NaN in the other's rows."""
    parts = sorted(set().union(*(scores for scores, _ in answers)))
    together = {
        part: torch.cat(
            [scores.get(part, torch.full((len(run),), torch.nan)) for (scores, _), run in zip(answers, runs)]
        )
        for part in parts
    }
    errors = list(dict.fromkeys(error for _, failures in answers for error in failures))
    return together, bounded(errors[: MOST_ERRORS + 1])


class _Ended(Exception):
    """Why there is no answer."""


@dataclass
class _Process:
    """A child with a pipe, and a second one whose other end closes when we end, however that is."""

    popen: subprocess.Popen[bytes]
    pipe: Connection
    lifeline: int

    @staticmethod
    def start(talk: Talk) -> _Process:
        ours, theirs = Pipe()
        read, write = os.pipe()
        try:
            popen = subprocess.Popen(
                talk.command(theirs.fileno(), read),
                pass_fds=(theirs.fileno(), read),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException as error:
            os.close(write)
            ours.close()
            if isinstance(error, OSError):
                raise _Ended(f"the reward's process cannot be started: {reason(error)}") from error
            raise
        finally:
            theirs.close()
            os.close(read)
        return _Process(popen, ours, write)

    def exchange(self, message: bytes, limit: float | None, late: str) -> bytes:
        """The answer to a message; raises _Ended where there is none."""
        until = None if limit is None else time.monotonic() + limit
        sender = threading.Thread(target=self._send, args=(message,), name="grpo_mm-to-reward", daemon=True)
        sender.start()  # apart, so that a process that does not read cannot keep us
        while not wait(
            [self.pipe], _LOOK_SECONDS if until is None else max(0, min(_LOOK_SECONDS, until - time.monotonic()))
        ):
            if self.popen.poll() is not None and not wait([self.pipe], 0):
                raise _Ended(self._how_it_ended())
            if until is not None and time.monotonic() >= until:
                raise _Ended(f"{late} within {limit:g} seconds: its process was killed")
        try:
            return self.pipe.recv_bytes(MOST_BYTES)
        except EOFError:
            raise _Ended(self._how_it_ended()) from None
        except OSError as error:
            if self.popen.poll() is None and not isinstance(error, ConnectionError):
                raise _Ended(
                    f"the reward's process gave more than {MOST_BYTES} bytes, or none that can be read"
                ) from None
            raise _Ended(self._how_it_ended()) from None

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it ended: the reader tells
            self.pipe.send_bytes(message)

    def _how_it_ended(self) -> str:
        try:
            code = self.popen.wait(5)
        except subprocess.TimeoutExpired:
            return "the reward's process closed its pipe"
        if code >= 0:
            return f"the reward's process ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        also = " (by somebody, or for want of memory)" if name == "SIGKILL" else ""
        return f"the reward's process was ended by signal {name}{also}"

    def kill(self) -> None:
        """With all that it started; harmless where it is gone."""
        if self.lifeline < 0:
            return
        os.close(self.lifeline)
        self.lifeline = -1
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        self.pipe.close()
