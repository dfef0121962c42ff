"""This machine as the place of a launch: what torchrun would do, with services beside it, and without Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.launch.places import Wanted, Worker
from grpo_mm.launch.settings import Launch
from grpo_mm.launch.workers import DEVICES, ServiceWorker, TrainerWorker

CALLS = 8
"""Of one worker at once; waiting for its end is one of them."""


class _Here:
    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self._threads = ThreadPoolExecutor(CALLS, thread_name_prefix="grpo_mm-launch")

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        return self._threads.submit(getattr(self.worker, method), *arguments)

    def end(self) -> None:
        self.worker.end()
        self._threads.shutdown(wait=False, cancel_futures=True)


class Here:
    """Whole GPUs are dealt out: first to services, in the order in which they are asked for, then to trainers. Processors are not counted."""

    name = "this machine"

    def __init__(self) -> None:
        self._devices = devices()
        self._trainers: list[_Here] = []
        self._services: list[_Here] = []

    def gpus(self) -> float:
        return float(len(self._devices))

    def trainers(self, launch: Launch, wanted: Wanted) -> Sequence[Worker]:
        if launch.per_node not in (None, launch.trainers):
            raise UserError(
                f"launch.per_node = {launch.per_node} of {launch.trainers} trainers wants several machines; this is one. Use --ray."
            )
        for worker in self._trainers:
            worker.end()
        self._check(wanted, [wanted] * launch.trainers)
        each = int(wanted.gpus)
        dealt = [",".join(self._devices[i * each : (i + 1) * each]) for i in range(launch.trainers)]
        self._trainers = [_Here(TrainerWorker(devices=own)) for own in dealt]
        return self._trainers

    def service(self, name: str, wanted: Wanted, settings: Mapping[str, Any]) -> Worker:
        if wanted.runtime_env:
            raise UserError(f"launch: runtime_env of {name} is Ray's. Use `python`, or --ray.")
        self._check(wanted, [wanted])
        taken, self._devices = self._devices[: int(wanted.gpus)], self._devices[int(wanted.gpus) :]
        environment = dict(settings["environment"]) | ({DEVICES: ",".join(taken)} if devices() else {})
        self._services.append(_Here(ServiceWorker(**{**settings, "environment": environment})))
        return self._services[-1]

    def missing(self, each: Sequence[Wanted]) -> str:
        return f"{sum(one.gpus for one in each):g} GPUs are wanted and {len(self._devices)} are free here"

    def close(self) -> None:
        for worker in (*self._trainers, *self._services):
            worker.end()

    def _check(self, wanted: Wanted, each: Sequence[Wanted]) -> None:
        if wanted.resources:
            raise UserError(
                f"launch: resources ({', '.join(wanted.resources)}) are Ray's. Leave them out, or use --ray."
            )
        if wanted.gpus != int(wanted.gpus):
            raise UserError(
                f"launch: {wanted.gpus:g} of a GPU can be had with --ray only; here GPUs are dealt out whole."
            )
        if sum(one.gpus for one in each) > len(self._devices):
            raise UserError(f"launch: {self.missing(each)}.")


def devices() -> list[str]:
    """Names of the CUDA devices of this process, without asking a driver."""
    said = os.environ.get(DEVICES)
    if said is not None:
        return [one for one in said.split(",") if one]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
