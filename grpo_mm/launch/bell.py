"""A bell beside each launch over Ray, which any machine of the cluster can ring: `grpo-mm launch --drain RUN`."""

from __future__ import annotations

import time
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.launch.over_ray import NAMESPACE, connect

ANSWER_SECONDS = 30.0
LOOK_SECONDS = 2.0


class _Bell:
    def __init__(self) -> None:
        self._rung = False

    def ring(self) -> None:
        self._rung = True

    def rung(self) -> bool:
        return self._rung


class NoBell:
    """Of a launch without Ray, which signals reach."""

    def rung(self) -> bool:
        return False


class Bell:
    """Of the launch of one run. Made in the program that launches, which has joined the cluster."""

    def __init__(self, run: str) -> None:
        """Raises UserError where a launch of this run is under way."""
        import ray

        try:
            made = ray.remote(_Bell).options(name=_name(run), num_cpus=0, max_restarts=-1)
            self._actor = made.remote()
        except ValueError as error:  # the name is taken
            raise UserError(
                f"a launch of {run} is under way. Wait for it, or stop it: grpo-mm launch --drain --ray {run}"
            ) from error
        self._asked: Any = None
        self._looked = 0.0

    def rung(self) -> bool:
        """Whether it was rung; asks without waiting, so that it may be a moment late."""
        import ray

        if self._asked is None and time.monotonic() - self._looked > LOOK_SECONDS:
            self._asked, self._looked = self._actor.rung.remote(), time.monotonic()
        if self._asked is None or not ray.wait([self._asked], timeout=0)[0]:
            return False
        asked, self._asked = self._asked, None
        try:
            return bool(ray.get(asked))
        except ray.exceptions.RayError:  # its node is gone: signals still reach the launcher
            return False


def ring(run: str, address: str) -> str:
    """Rings the bell of a run; what was done, in words.

    Raises:
        UserError: there is none.
    """
    where = connect(address, may_begin=False)
    import ray

    try:
        ray.get(ray.get_actor(_name(run), namespace=NAMESPACE).ring.remote(), timeout=ANSWER_SECONDS)
    except (ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"no launch of {run} is under way on {where}.") from error
    finally:
        ray.shutdown()
    return f"{run} was asked to stop: its launcher ends when the step is done and a checkpoint is written"


def _name(run: str) -> str:
    return f"bell of {run}"
