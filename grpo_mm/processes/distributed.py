"""One process or many, behind the few operations the core needs; accelerate starts and places the processes."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError, TrainingStopped, UserError
from grpo_mm.identity import FREE
from grpo_mm.processes.alike import bit_sums, checksum, combined
from grpo_mm.processes.clock import phase
from grpo_mm.processes.notices import of_this_run
from grpo_mm.processes.sequence import SequenceGroup
from grpo_mm.processes.shards import Shards

Shard = Callable[..., Shards | None]
"""`Processes.shard`, as a policy is handed it."""


@dataclass(frozen=True)
class Distributed:
    """How the processes of a run share its weights."""

    kind: Literal["replicated", "sharded"] = field(default="replicated", metadata=FREE)
    """replicated: every process holds all weights and optimiser states. sharded: each holds a part of them, and whole weights only
    while it samples, or makes gradients. Both train as one process does, up to rounding."""
    shard_over: int | None = field(default=None, metadata=FREE)
    """sharded: so many processes hold one set of parts, such as those of a node, and the others copies of it; null: all processes."""
    sequence: int = field(default=1, metadata=FREE)
    """So many processes hold a row between them, each a part of its tokens, where log-probabilities and gradients of texts are computed
    (Ulysses, arXiv:2309.14509); they draw and score the same rows. 1: each row is one process's."""
    gather: Literal["phase", "forward"] = field(default="phase", metadata=FREE)
    """sharded: when weights are whole. phase: while a process samples, or makes the gradients of an update, when none waits for another.
    forward: a block's only while a forward or a backward pass is in it, for models that are too large to be whole; pictures only."""
    check_every: int = field(default=100, metadata=FREE)
    """Steps between comparisons of the weights that several processes hold; 0: only at the start."""
    timeout_minutes: float = field(default=120.0, metadata=FREE)
    """A process that waits so long for another ends the run. Longer than the slowest reward, evaluation or checkpoint."""

    def __post_init__(self) -> None:
        if (
            not self.timeout_minutes > 0
            or self.check_every < 0
            or (self.shard_over is not None and self.shard_over < 1)
            or self.sequence < 1
        ):
            raise ConfigError(
                f"distributed: timeout_minutes = {self.timeout_minutes}, check_every = {self.check_every}, shard_over = "
                f"{self.shard_over}, sequence = {self.sequence}; wanted above 0, at least 0, at least 1, and at least 1."
            )

    def ranks(self, processes: int) -> int:
        """How many have rows of their own."""
        return max(1, processes // self.sequence)

    def check(self, world: int) -> None:
        """Raises ConfigError for a number of processes that the parts cannot be dealt to; one keeps all of them."""
        if self.kind == "sharded" and world > 1 and self.shard_over is not None and world % self.shard_over:
            raise ConfigError(
                f"distributed.shard_over = {self.shard_over} does not divide {world} processes. Use a divisor, or leave it out."
            )
        if world > 1 and world % self.sequence:
            raise ConfigError(
                f"distributed.sequence = {self.sequence} does not divide {world} processes. Use a divisor, or leave it out."
            )


class Processes:
    """Rank, world size, device, and sums over ranks. World size 1 needs no launcher and no communication.

    A rank has rows of its own: it is a process, or (`distributed.sequence`) that many neighbours, which have the same rows. `index` and
    `number` are of processes.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        matmul: str = "highest",
        distributed: Distributed = Distributed(),  # noqa: B008
    ) -> None:
        """matmul: "tf32" or "highest", how a GPU multiplies float32 matrices (`set_matmul`)."""
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device is {device!r}, but torch sees no CUDA device here. Use device=cpu or device=auto."
            )
        cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        self.timeout = timedelta(minutes=distributed.timeout_minutes)
        self.accelerator = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=self.timeout)])
        self.index, self.number = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        distributed.check(self.number)
        self.distributed = distributed
        self.members = distributed.sequence if self.number > 1 else 1
        self.rank, self.world = self.index // self.members, self.number // self.members
        self.sequence = _sequence(self)
        self._mesh: Any = None
        self._shards: Shards | None = None
        self._group: Any = None
        """Of `gather`; None: all processes, by the run's own communication."""
        self._notices = of_this_run(rank=self.index, world=self.number, limit=self.timeout)
        if self.device.type == "cuda":
            set_matmul(matmul)
        if self.number > 1:
            _leave_at_exit()

    @property
    def is_main(self) -> bool:
        return self.index == 0

    @property
    def cuts_weights(self) -> bool:
        """Whether there are other processes to share the weights with."""
        return self.distributed.kind == "sharded" and self.number > 1

    def shard(
        self, network: nn.Module, units: Sequence[Sequence[nn.Module]], *, compute: torch.dtype | None = None
    ) -> Shards | None:
        """Cuts the weights of a network over the processes, see `Shards`; None where each process keeps all of them."""
        if not self.cuts_weights:
            return None
        self.check_alike(network.parameters(), when="as they were loaded")
        self._mesh = _mesh(self, self.distributed.shard_over or self.number) if self._mesh is None else self._mesh
        self._shards = Shards(
            network, units, self._mesh, compute=compute, in_forward=self.distributed.gather == "forward"
        )
        return self._shards

    @contextmanager
    def gathered(self, policy: Any, *, copies: Iterable[str] = ()) -> Iterator[None]:
        """The policy within can be asked for values: its weights are whole. Processes enter and leave together; within they need
        not do alike.

        Args:
            copies: snapshots of the weights that are put in place within.
        """
        shards = getattr(policy, "shards", None)
        if shards is None:
            yield
            return
        with policy.snapshots.gathered(copies), shards.gathered():
            yield

    @contextmanager
    def updating(self, policy: Any) -> Iterator[None]:
        """The same for an update: at its end the gradients are the sums of those that the processes made within."""
        shards = getattr(policy, "shards", None)
        if shards is None:
            yield
            with self._waiting():
                self.sync_gradients(list(policy.trainable.values()))
            return
        with shards.gathered():
            yield
            with phase("optim"), self._waiting():
                shards.add_up_gradients()

    def telling(self) -> AbstractContextManager[None]:
        """Within, a process that ends ends all, with its reason (`Notices.kept`)."""
        return nullcontext() if self._notices is None else self._notices.kept()

    def all_say(self, word: str) -> bool:
        """Whether all processes come here with the same word, shortly after each other; one that does not is not waited for."""
        return self._notices is None or self._notices.all_say(word)

    def _waiting(self) -> AbstractContextManager[None]:
        return nullcontext() if self._notices is None else self._notices.waiting()

    def beside(self) -> Processes:
        """The same processes for a thread that runs beside the main one on each: `gather`, `everywhere` and `by_main` of it do not
        get in the way of others. All processes make it together."""
        other = copy(self)
        other._shards, other._notices = None, None
        if self.number > 1:
            other._group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
        return other

    def check_alike(self, tensors: Iterable[Tensor], *, when: str) -> None:
        """All processes come together. Where tensors are cut, those are compared that hold the same part.

        Raises:
            TrainingStopped: two processes that should hold the same hold something else.
        """
        if self.number == 1:
            return
        tensors = list(tensors)
        cut = any(hasattr(tensor, "to_local") for tensor in tensors)
        own = (self.index % (self.distributed.shard_over or self.number) if cut else 0, checksum(tensors))
        first: dict[int, tuple[int, int]] = {}
        for rank, (part, found) in enumerate(self.gather_all(own)):
            other, wanted = first.setdefault(part, (rank, found))
            if found != wanted:
                raise TrainingStopped(
                    f"processes {other} and {rank} hold different weights {when}. At the start: do all nodes have the same files of the "
                    "model? Later: a device may be faulty; the checkpoints before are those of process 0."
                )

    def check_members(self, tensors: Iterable[Tensor], *, what: str) -> None:
        """Members of a rank come together, which hold the same before they go on between them.

        Raises:
            TrainingStopped: they do not; on all of them.
        """
        if self.sequence is None:
            return
        tensors, found = list(tensors), [None] * self.sequence.size
        own = [(tuple(tensor.shape), bits) for tensor, bits in zip(tensors, bit_sums(tensors), strict=True)]
        torch.distributed.all_gather_object(found, own, group=self.sequence.group)
        if any(one != found[0] for one in found):
            raise TrainingStopped(
                f"{what}: processes of one row (distributed.sequence = {self.sequence.size}) hold different ones; sampling on their "
                "devices is not the same to the last bit. Use devices of one kind, and the same versions on all."
            )

    def whole_checksum(self, tensors: Iterable[Tensor]) -> int:
        """Of tensors that may be cut, the same on any number of processes; they come together."""
        sums = bit_sums(tensors)
        if self.cuts_weights:
            ranks = self.gather_all(sums)[: self.distributed.shard_over or self.number]  # the others hold copies
            sums = [sum(parts) for parts in zip(*ranks, strict=True)]
        return combined(value % 2**64 for value in sums)

    def everywhere(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` gives on each process, in rank order; where it raises on one it raises on all, and nobody waits.

        Raises:
            TrainingStopped, UserError: `work` raised on another process; it says on which, and what. What it raises here is raised
                as it is.
        """
        if self.number == 1:
            return [work()]
        found: Any = None
        error: Exception | None = None
        try:
            found = work()
        except Exception as raised:
            error = raised
        told = None if error is None else (isinstance(error, UserError), f"{type(error).__name__}: {error}", str(error))
        ranks = self.gather_all((told, found))
        if error is not None:
            raise error
        for rank, (told, _) in enumerate(ranks):
            if told is not None:
                is_ours, named, plain = told
                raise UserError(plain) if is_ours else TrainingStopped(f"process {rank} failed: {named}")
        return [found for _, found in ranks]

    def by_main(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on the main process, which alone does it, on all; raises as `everywhere` does."""
        return self.everywhere(lambda: work() if self.is_main else None)[0]

    def gather(self, thing: Any) -> list[Any]:
        """`thing` of every rank, in rank order, on every rank. For small CPU tables. What members of a rank have is its first's."""
        return self.gather_all(thing)[:: self.members]

    def gather_all(self, thing: Any) -> list[Any]:
        """`thing` of every process."""
        if self.number == 1:
            return [thing]
        things: list[Any] = [None] * self.number
        if self._shards is not None:
            self._shards.meet()
        with self._waiting():
            torch.distributed.all_gather_object(things, thing, group=self._group)
        return things

    def sum(self, value: float) -> float:
        return float(sum(self.gather(value)))

    def max(self, value: float) -> float:
        return float(max(self.gather(value)))

    def sync_gradients(self, params: Sequence[nn.Parameter]) -> None:
        """Sums the gradients over ranks. Every term has a global denominator, so a sum is what is wanted."""
        if self.number == 1:
            return
        used = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(used)
        params = [p for p, ranks in zip(params, used.tolist(), strict=True) if ranks]  # the optimiser skips the others
        for p in params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        grads = [p.grad for p in params if p.grad is not None]
        for bucket in _buckets(grads):
            flat = torch.cat([g.flatten() for g in bucket])
            torch.distributed.all_reduce(flat)
            for g, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                g.copy_(part.view_as(g))

    def barrier(self) -> None:
        if self.number > 1:
            self._shards.meet() if self._shards is not None else None
            with self._waiting():
                self.accelerator.wait_for_everyone()


def set_matmul(precision: str) -> None:
    """Of float32 matrix products and convolutions on CUDA devices, in this process: "tf32" or "highest" (IEEE float32)."""
    # The older of two sets of switches: torch 2.6 has it, and refuses to say how one is set after the other was used.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _buckets(grads: Sequence[Tensor], limit: int = 64 * 2**20) -> list[list[Tensor]]:
    """Consecutive gradients of one dtype, at most `limit` elements together."""
    buckets: list[list[Tensor]] = []
    size = 0
    for grad in grads:
        if not buckets or size + grad.numel() > limit or buckets[-1][0].dtype != grad.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(grad)
        size += grad.numel()
    return buckets


def _sequence(processes: Processes) -> SequenceGroup | None:
    """The processes that a row is cut over, neighbours of one node; None where each row is one process's."""
    members, found = processes.members, None
    if members == 1:
        return None
    for rank in range(processes.world):  # every process has to make every group, in the same order
        group = torch.distributed.new_group(range(rank * members, (rank + 1) * members), timeout=processes.timeout)
        found = group if rank == processes.rank else found
    return SequenceGroup(found, processes.index % members, members)


def _mesh(processes: Processes, shard_over: int) -> Any:
    """The processes as [copies, parts], or [parts] where there is one copy; messages have the time-out of the run."""
    from torch.distributed.device_mesh import DeviceMesh

    rank_CP = torch.arange(processes.number).view(-1, shard_over)
    kind = processes.device.type
    groups: list[Any] = []
    for lines in (rank_CP.T, rank_CP):  # every process has to make every group, in the same order
        made = [torch.distributed.new_group(line, timeout=processes.timeout) for line in lines.tolist()]
        groups += [g for g, line in zip(made, lines.tolist(), strict=True) if processes.index in line]
    if len(rank_CP) == 1:
        return DeviceMesh.from_group(groups[1], kind, mesh_dim_names=("parts",))
    return DeviceMesh.from_group(groups, kind, mesh=rank_CP, mesh_dim_names=("copies", "parts"))


@cache
def _leave_at_exit() -> None:
    """Ends the communication before the interpreter does: its threads would abort a process that has done its work."""
    atexit.register(lambda: torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None)
