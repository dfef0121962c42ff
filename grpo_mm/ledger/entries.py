"""What a ledger is made of: who holds how many bytes, all the time or during one phase of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

GIB = 2**30
PROPORTIONAL = ("activations", "keys and values")


@dataclass(frozen=True)
class Entry:
    """Bytes of one owner on each device that holds a whole copy.

    Example: Entry("gradients", 4 * 11_900_000_000, "float32").
    """

    owner: str
    bytes: int
    dtype: str = ""
    place: Literal["device", "host"] = "device"
    split: Literal["", "weights", "rows"] = ""
    """What leaves each device a part of it: "weights", sharding; "rows", processes that share the prompts of a step."""
    when: Literal["", "replicated", "sharded", "whole", "forward"] = ""
    """The form in which there is such an entry; "": in all. sharded: gathered once a phase; forward: within forwards; whole: all but
    that."""

    def on_each(self, spread: Spread, *, counted_for: int) -> int:
        """Bytes on each of several devices, of an entry that was counted for the rows of one of `counted_for` processes."""
        if self.when and self.when not in spread.forms:
            return 0
        if self.split == "rows":
            return -(-self.bytes * counted_for // spread.devices)
        return -(-self.bytes // (spread.devices if self.split == "weights" and spread.sharded else 1))


@dataclass(frozen=True)
class Spread:
    """Over how many devices a run is spread, all of which share the prompts.

    sharded: each keeps a part of the weights, of the optimiser and of copies of the weights; weights are gathered in the dtype of
    the forwards once a phase, gradients are added up whole and cut once an update (ZeRO-2). Else each holds everything.
    """

    devices: int = 1
    sharded: bool = False
    gather: Literal["phase", "forward"] = "phase"
    """forward: a block's weights are whole only while a pass is in it, and its gradients are added up and cut after each."""

    @property
    def forms(self) -> tuple[str, ...]:
        """Of entries that there are, see `Entry.when`."""
        if not self.sharded:
            return REPLICATED
        return ("forward",) if self.gather == "forward" else ("sharded", "whole")


REPLICATED = ("replicated", "whole")


def _is_on_device(entry: Entry) -> bool:
    """Of a form that is not yet chosen (`Ledger.on`): as replicated."""
    return entry.place == "device" and (not entry.when or entry.when in REPLICATED)


def _on_device(entries: tuple[Entry, ...]) -> int:
    return sum(entry.bytes for entry in entries if _is_on_device(entry))


@dataclass(frozen=True)
class Phase:
    """What comes on top of the resident entries while a step is in one of its phases."""

    name: str
    parts: tuple[Entry, ...]
    lower: str = ""
    """The settings that make it smaller."""
    setting: tuple[str, int] | None = None
    """(key, value) of the setting that its activations are proportional to."""

    @property
    def bytes(self) -> int:
        return _on_device(self.parts)

    @property
    def proportional(self) -> int:
        """Bytes of `activations` and of keys, which `setting` scales."""
        return _on_device(tuple(part for part in self.parts if part.owner in PROPORTIONAL))


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
    devices: int = 1
    """Processes that share a step's prompts; entries by rows are those of one of them."""
    can_shard: bool = True
    """Whether the run may cut its weights over devices."""

    def on(self, spread: Spread) -> Ledger:
        """The share of each of several devices. Of entries, not of operations: these follow the processes it was counted for."""

        def here(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
            sized = (replace(e, bytes=e.on_each(spread, counted_for=self.devices), split="", when="") for e in entries)
            return tuple(entry for entry in sized if entry.bytes)

        phases = tuple(replace(phase, parts=here(phase.parts)) for phase in self.phases)
        return replace(self, resident=here(self.resident), phases=phases, devices=spread.devices)

    @property
    def comes_and_goes(self) -> bool:
        """Whether its weights may be whole within forwards only."""
        return any(entry.when == "forward" for phase in self.phases for entry in phase.parts)

    @property
    def held(self) -> int:
        """Bytes that are on the device all the time."""
        return _on_device(self.resident)

    @property
    def by_dtype(self) -> dict[str, int]:
        """Bytes at the peak, the largest first; "" for what is of several."""
        found: dict[str, int] = {}
        for entry in (*self.resident, *self.fullest.parts):
            if _is_on_device(entry):
                found[entry.dtype] = found.get(entry.dtype, 0) + entry.bytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))

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
        return self.held + self.fullest.bytes


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
    reference_dtype: Literal["float32", "bfloat16"] = "float32"
    kind: Literal["cuda", "cpu"] = "cuda"
    optimiser_bytes: int = 8
    """Of the optimiser's state for one trained float32 weight; 2 where its moments have 8 bits."""
    foreach: bool = True
    """Whether the optimiser takes a root of the whole second moment at once, as AdamW does on a GPU."""
    fused: bool = False
    """Whether it takes none that is kept (`optim.fused`)."""
    eval_rows: int = 0
    """Held-out rows that one process is asked at once; 0: no held-out data, or as many as a step has."""
    devices: int = 1
    """Processes that share the step's prompts."""
    sequence: int = 1
    """Processes that hold a row between them."""
    offload_rewards: bool = False
    copies_checkpoints: bool = False
    """Whether they are written from a copy in main memory."""
    media: str = ""
    """"video" or "picture" where prompts have one, as far as the readers tell."""

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size


def cut_rows(phase: Phase, processes: int, *, whole: int) -> Phase:
    """A phase whose rows are cut over processes: each has a part of the activations, and `whole` bytes that all have."""
    if processes == 1:
        return phase
    parts = (replace(p, bytes=-(-p.bytes // processes)) if p.owner == "activations" else p for p in phase.parts)
    return replace(phase, parts=(*parts, Entry("hidden states of whole rows", whole)))


def swapped(trained_bytes: int) -> Entry:
    """The present weights, aside while a snapshot is in their place."""
    return Entry("present weights, aside", trained_bytes, "float32", split="weights")
