"""The key `launch` of a config: how many processes of what, and what each takes of a machine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.outside import shown

ENGINES = "engine"
"""The name of the services that draw."""


@dataclass(frozen=True)
class ServedRewards:
    """Rewards of the run that processes of their own score, by `grpo-mm serve`. The run's figures are the same."""

    rewards: tuple[str, ...] = field(metadata=FREE)
    """Names of entries of `rewards` and `watch`."""
    replicas: int = field(default=1, metadata=FREE)
    """So many processes; trainer r asks number r modulo replicas."""
    cpus: float = field(default=1.0, metadata=FREE)
    """Processors of each, in Ray's counting."""
    gpus: float = field(default=0.0, metadata=FREE)
    """GPUs of each, or a part of one."""
    resources: dict[str, float] = field(default_factory=dict, metadata=FREE)
    """What else the node must have, under Ray's own names."""
    python: str | None = field(default=None, metadata=FREE)
    """The Python of another environment, in which grpo_mm is installed; null: that of the trainers."""
    runtime_env: dict[str, Any] = field(default_factory=dict, metadata=FREE)
    """Handed to Ray, such as {pip: [...]}."""


@dataclass(frozen=True)
class EngineServers:
    """Servers that draw the answers of the run, for engine.generator: {kind: vllm_server}; its `start` and `urls` are not used then."""

    replicas: int = field(default=1, metadata=FREE)
    """So many, with the same weights."""
    cpus: float = field(default=1.0, metadata=FREE)
    """Processors of each, in Ray's counting."""
    gpus: float | None = field(default=None, metadata=FREE)
    """GPUs of each, which the model is cut over; null: as for trainers."""
    resources: dict[str, float] = field(default_factory=dict, metadata=FREE)
    """What else the node must have, under Ray's own names."""
    python: str | None = field(default=None, metadata=FREE)
    """The Python of another environment, in which grpo_mm[vllm] is installed; null: that of the trainers."""
    runtime_env: dict[str, Any] = field(default_factory=dict, metadata=FREE)
    """Handed to Ray, such as {pip: [...]}."""


@dataclass(frozen=True)
class Launch:
    """How `grpo-mm launch` places a run; nothing else reads it."""

    trainers: int = field(default=1, metadata=FREE)
    """Processes that train."""
    per_node: int | None = field(default=None, metadata=FREE)
    """Exactly so many of them on a node; null: on as few nodes as there is room."""
    cpus: float = field(default=1.0, metadata=FREE)
    """Processors of each trainer, in Ray's counting."""
    gpus: float | None = field(default=None, metadata=FREE)
    """GPUs of each trainer; null: one where `device` is not cpu and the machines have any."""
    resources: dict[str, float] = field(default_factory=dict, metadata=FREE)
    """What else a trainer's node must have, under Ray's own names."""
    scorers: dict[str, ServedRewards] = field(default_factory=dict, metadata=FREE)
    """Services that score, by a name of your own."""
    engines: EngineServers | None = field(default=None, metadata=FREE)
    """Services that draw; null: as engine.generator says."""
    restarts: int = field(default=3, metadata=FREE)
    """The run is begun again from its last checkpoint at most so often."""
    wait_minutes: float = field(default=5.0, metadata=FREE)
    """How long a place on the machines is waited for."""
    start_minutes: float = field(default=15.0, metadata=FREE)
    """How long a service may take until it first answers: for loading its weights."""
    drain_minutes: float = field(default=60.0, metadata=FREE)
    """How long the step under way and its checkpoint may take after the run was asked to stop."""

    def __post_init__(self) -> None:
        least = {"trainers": self.trainers, "per_node": 1 if self.per_node is None else self.per_node}
        least |= {f"scorers.{name}.replicas": one.replicas for name, one in self.scorers.items()}
        least |= {} if self.engines is None else {"engines.replicas": self.engines.replicas}
        for key, value in least.items():
            if value < 1:
                raise ConfigError(f"launch.{key} = {value}; wanted at least 1.")
        amounts = dict(_amounts("", self.cpus, self.gpus or 0.0, self.resources))
        for name, one in self.scorers.items():
            amounts |= dict(_amounts(f"scorers.{name}.", one.cpus, one.gpus, one.resources))
        if self.engines is not None:
            one = self.engines
            amounts |= dict(_amounts("engines.", one.cpus, one.gpus or 0.0, one.resources))
        for key, value in (amounts | {"restarts": self.restarts}).items():
            if not value >= 0:
                raise ConfigError(f"launch.{key} = {value}; wanted 0 or more.")
        for key in ("wait_minutes", "start_minutes", "drain_minutes"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"launch.{key} = {getattr(self, key)}; wanted above 0.")
        if self.per_node is not None and self.trainers % self.per_node:
            raise ConfigError(
                f"launch.per_node = {self.per_node} does not divide launch.trainers = {self.trainers}. Use a divisor, or leave it out."
            )

    def check(self, rewards: Collection[str], *, asks_servers: bool) -> None:
        """Raises ConfigError for a reward that is not of the run, or served twice, and for engines that nobody would ask.

        Args:
            rewards: names of those that have a `use`.
            asks_servers: whether the run draws with servers.
        """
        if self.engines is not None and not asks_servers:
            raise ConfigError(
                "launch.engines are servers that draw: set engine.generator.kind=vllm_server, or leave them out."
            )
        if self.engines is not None and ENGINES in self.scorers:
            raise ConfigError(f"launch.scorers.{ENGINES}: that is the name of the engines. Use another.")
        by: dict[str, str] = {}
        for name, one in self.scorers.items():
            if not one.rewards:
                raise ConfigError(f"launch.scorers.{name}.rewards names none, so it has nothing to do.")
            for reward in one.rewards:
                if reward not in rewards:
                    raise ConfigError(
                        f"launch.scorers.{name}.rewards: {shown(reward)} is no reward of this run; it has {', '.join(rewards)}."
                    )
                if reward in by:
                    raise ConfigError(f"launch.scorers: {by[reward]} and {name} both have the reward {shown(reward)}.")
                by[reward] = name

    @property
    def served(self) -> dict[str, str]:
        """Reward -> the service that scores it."""
        return {reward: name for name, one in self.scorers.items() for reward in one.rewards}


def _amounts(prefix: str, cpus: float, gpus: float, resources: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    yield f"{prefix}cpus", cpus
    yield f"{prefix}gpus", gpus
    yield from ((f"{prefix}resources.{name}", amount) for name, amount in resources.items())
