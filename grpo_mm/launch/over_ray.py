"""A Ray cluster as the place of a launch. Ray places, restarts services and carries calls; nothing else is left to it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from importlib.util import find_spec
from typing import Any

from grpo_mm.errors import UserError
from grpo_mm.launch.places import Gone, Wanted, Worker, map_future
from grpo_mm.launch.settings import Launch
from grpo_mm.launch.workers import ServiceWorker, TrainerWorker
from grpo_mm.outside import plain, reason, shown

NAMESPACE = "grpo_mm"
AS_OURS = {"worker_niceness": 0}
"""Of a cluster that is started for this launch: else processes of Ray, and what they start, give way to all others (15)."""
REACH_SECONDS = 10.0
END_SECONDS = 10.0
"""For trainers to end what they hold, where they still answer."""
CALLS = 8
"""Of one actor at once; waiting for the end of its process is one of them."""


def connect(address: str, *, may_begin: bool = True) -> str:
    """Joins the cluster at `address` (host:port); auto: that of this machine, or, if that `may_begin`, a new one of
    this machine alone; local: a new one.

    Returns:
        Its name for messages.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached within seconds.
    """
    if find_spec("ray") is None:
        raise UserError('--ray needs Ray: pip install "grpo_mm[ray]".')
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody by a cluster that we start
    if address.startswith("ray://"):
        raise UserError(
            f"{shown(address)} is for Ray's client, from outside the cluster: launch from one of its nodes, with HOST:PORT."
        )
    import ray

    own = {"ignore_reinit_error": False, "log_to_driver": False, "namespace": NAMESPACE, "logging_level": logging.ERROR}
    try:
        if address == "auto":
            try:
                return _name(ray.init(address="auto", **own))
            except ConnectionError:
                if not may_begin:
                    raise UserError(
                        "there is no Ray cluster on this machine: say its address, --ray HOST:PORT."
                    ) from None
                address = "local"
        if address == "local":
            ray.init(address="local", include_dashboard=False, _system_config=AS_OURS, **own)
            return "Ray on this machine"
        _check_reachable(address)
        return _name(ray.init(address=address, **own))
    except UserError:
        raise
    except (
        Exception
    ) as error:  # Ray's own, of many kinds: versions of Python and Ray that differ, a token that is wrong
        raise UserError(f"the Ray cluster {shown(address)} cannot be joined: {reason(error)}.") from error


def _name(context: Any) -> str:
    return f"the Ray cluster {context.address_info['gcs_address']}"


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"the Ray cluster {shown(address)} cannot be reached: {reason(error, 100)}. `ray status` on its head node says its address."
        ) from None


class OverRay:
    """Trainers in a placement group, services as actors that Ray starts again, on another node if need be."""

    def __init__(self, address: str) -> None:
        """Raises UserError as `connect`."""
        self.name = connect(address)
        self._group: Any = None
        self._trainers: list[_Actor] = []

    def gpus(self) -> float:
        return sum(node["Resources"].get("GPU", 0.0) for node in self._nodes())

    def trainers(self, launch: Launch, wanted: Wanted) -> Sequence[Worker]:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._give_up_trainers()
        each = launch.per_node or 1
        bundle = {"CPU": wanted.cpus, "GPU": wanted.gpus, **wanted.resources}
        bundle = {name: amount * each for name, amount in bundle.items() if amount} or {"CPU": 0.001}
        bundles = [bundle] * (launch.trainers // each)
        self._group = placement_group(bundles, strategy="PACK" if launch.per_node is None else "STRICT_SPREAD")
        if not self._group.wait(launch.wait_minutes * 60):
            apart = f", {each} on each of {len(bundles)} nodes" if launch.per_node else ""
            raise UserError(
                f"{self.name} has had no room for {launch.trainers} trainers of {wanted.words()}{apart} for {launch.wait_minutes:g} minutes "
                f"(launch.wait_minutes): {self.missing([wanted] * launch.trainers)}."
            )
        for i in range(launch.trainers):
            where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=i // each)
            options = _options(wanted) | {"scheduling_strategy": where, "max_restarts": 0}
            self._trainers.append(_Actor(ray.remote(_PlacedTrainer).options(**options).remote(), f"trainer {i}"))
        return self._trainers

    def service(self, name: str, wanted: Wanted, settings: Mapping[str, Any]) -> Worker:
        import ray

        options = _options(wanted) | {"max_restarts": -1, "scheduling_strategy": "SPREAD"}
        if wanted.runtime_env:
            options["runtime_env"] = dict(wanted.runtime_env)
        return _Actor(ray.remote(_PlacedService).options(**options).remote(dict(settings)), name)

    def missing(self, each: Sequence[Wanted]) -> str:
        nodes = [node["Resources"] for node in self._nodes()]
        total: dict[str, float] = {}
        for one in each:
            for name, amount in {"CPU": one.cpus, "GPU": one.gpus, **one.resources}.items():
                total[name] = total.get(name, 0.0) + amount
        import ray

        free, said = ray.available_resources(), []
        for name, amount in total.items():
            has = sum(node.get(name, 0.0) for node in nodes)
            if amount > has:
                said.append(f"{amount:g} {name} wanted, its {len(nodes)} nodes have {has:g}")
            elif amount > free.get(name, 0.0):
                said.append(f"{amount:g} {name} wanted, {free.get(name, 0.0):g} of {has:g} are free")
        return "; ".join(said) or "no node has them together"

    def close(self) -> None:
        import ray

        self._give_up_trainers()
        ray.shutdown()  # ends the actors of this program, and they their processes

    def _give_up_trainers(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        wait([worker.call("end") for worker in self._trainers], timeout=END_SECONDS)
        for worker in self._trainers:
            ray.kill(worker.actor)
        self._trainers = []
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _nodes(self) -> list[dict[str, Any]]:
        import ray

        return [node for node in ray.nodes() if node["Alive"]]


class _Actor:
    def __init__(self, actor: Any, name: str) -> None:
        self.actor, self._name = actor, name

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        return map_future(self.actor.call.remote(method, *arguments).future(), self._error)

    def _error(self, raised: BaseException) -> BaseException:
        import ray

        if isinstance(raised, ray.exceptions.RayTaskError):
            cause = raised.cause if isinstance(raised.cause, UserError) else raised
            return cause
        return Gone(f"{self._name}: {plain(reason(raised), 300)}")


class _PlacedTrainer:
    """A trainer worker that knows its node."""

    def __init__(self) -> None:
        self.worker = TrainerWorker(**_place())

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.worker, method)(*arguments)


class _PlacedService:
    """A service worker that knows its node; made anew by Ray when its node or its process is lost."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.worker = ServiceWorker(**settings, **_place())

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.worker, method)(*arguments)


def _place() -> dict[str, str]:
    import ray

    return {"host": ray.util.get_node_ip_address(), "node": ray.get_runtime_context().get_node_id()[:8]}


def _options(wanted: Wanted) -> dict[str, Any]:
    return {
        "num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "resources": dict(wanted.resources) or None,
        "max_concurrency": CALLS,
    }  # fmt: skip
