"""What a ledger is made of: who holds how many bytes, all the time or during one phase of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Entry:
    """Bytes of one owner on each device that holds a whole copy.

    Example: Entry("gradients", 4 * 11_900_000_000, "float32").
    """

    owner: str
    bytes: int
    dtype: str = ""
    place: Literal["device", "host"] = "device"
    divisible: bool = False
    """Whether sharding could leave each device its part. All is replicated today, see `Ledger.on_each`."""


@dataclass(frozen=True)
class Phase:
    """What comes on top of the resident entries while a step is in one of its phases."""

    name: str
    parts: tuple[Entry, ...]
    lower: str = ""
    """The setting that makes it smaller."""

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts if part.place == "device")


@dataclass(frozen=True)
class Ledger:
    """One device's share of a run."""

    resident: tuple[Entry, ...] = ()
    phases: tuple[Phase, ...] = ()
    flops: Mapping[str, float] = field(default_factory=dict)
    """Of a step on one device, by phase; a multiply-add is two."""
    token_steps: float = 0
    """Forwards of a step that draw one token of each row: their time is that of reading weights and keys, not of arithmetic."""
    token_bytes: float = 0
    """Read in each of these."""
    token_seconds: float = 0
    """Least that one of these takes on any GPU: its kernels are started one by one."""
    low_precision: bool = True
    """Whether products run in bfloat16."""
    trained: int = 0
    weights: int = 0
    said: tuple[str, ...] = ()
    """What was assumed, where sizes come from, what is in no line."""

    def on_each(self, *, sharded_over: int = 1) -> int:
        """Resident bytes of each device; `sharded_over` devices share what is divisible."""
        return sum(-(-e.bytes // (sharded_over if e.divisible else 1)) for e in self.resident if e.place == "device")

    @property
    def host(self) -> int:
        """Bytes in main memory of each process."""
        phases = [sum(p.bytes for p in phase.parts if p.place == "host") for phase in self.phases]
        return sum(e.bytes for e in self.resident if e.place == "host") + max(phases, default=0)

    @property
    def fullest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes, default=Phase("nothing", ()))

    @property
    def peak(self) -> int:
        """Most bytes at once, on each device."""
        return self.on_each() + self.fullest.bytes


@dataclass(frozen=True)
class Plan:
    """What a policy must know of a run to write its ledger; rows and prompts are those of one process and one step."""

    prompts: int
    group_size: int
    updates: int
    """Parts that a step's rows are trained in."""
    calls: Mapping[str, int]
    """Network calls of the process in a step: rollout, train, and value, ref, old, ema where there are any."""
    needs: frozenset[str] = frozenset()
    snapshots: tuple[str, ...] = ()
    """Copies of the trained weights that the run keeps."""
    kind: Literal["cuda", "cpu"] = "cuda"
    optimiser_bytes: int = 8
    """Of the optimiser's state for one trained float32 weight."""
    foreach: bool = True
    """Whether the optimiser takes a root of the whole second moment at once, as AdamW does on a GPU."""
    eval_rows: int = 0
    """Held-out rows that one process is asked at once; 0: no held-out data, or as many as a step has."""
    media: str = ""
    """"video" or "picture" where prompts have one, as far as the readers tell."""

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size


def swapped(trained_bytes: int) -> Entry:
    """The present weights, aside while a snapshot is in their place."""
    return Entry("present weights, aside", trained_bytes, "float32", divisible=True)
