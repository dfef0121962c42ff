"""Weights of a network's blocks that are whole only while a forward or a backward pass is in them.

Processes that share the weights have to gather each block together, and yet may differ in how many forwards they make. So they take
turns: before each pass through the blocks every process says what it wants; all take part in the first of these, those that want
something else without computing anything, and ask again. What a pass gathers and adds up is the same in each: all blocks in their order, or back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError, TrainingStopped
from grpo_mm.processes.clock import phase

BACKWARD, FORWARD, NOTHING = range(3)
"""What a process wants, in the order of turns: a backward pass frees what a forward has kept."""


@dataclass
class Block:
    """A module of the network whose weights come and go."""

    module: nn.Module
    unit: Any
    """Its weights, as `fully_shard` has cut them."""

    def params(self) -> list[nn.Parameter]:
        """The trained ones as they are now, whole or cut."""
        return [p for p in self.unit.parameters() if p.requires_grad]


class Turns:
    """Of one process. `wide`: the dtype that gradients add up in; None: that of the weights."""

    def __init__(self, blocks: Sequence[Block], mesh: Any, *, trained_before: bool, wide: torch.dtype | None) -> None:
        """trained_before: whether gradients go on before the first block."""
        if not blocks:
            raise ConfigError(
                "distributed.gather = forward, but the network has no lists of blocks whose weights could come and go. Use gather=phase."
            )
        self.blocks, self._wide = list(blocks), wide
        parts = mesh.ndim - 1
        self._group, self._parts = mesh.get_group(parts), mesh.size(parts)
        self._copies = mesh.get_group(0) if parts else None
        self._device = torch.device(mesh.device_type)
        trained = [number for number, block in enumerate(self.blocks) if block.params()]
        self._first = 0 if trained_before or not trained else trained[0]
        """The last block that a backward pass comes to."""
        self._at: tuple[int, int] | None = None
        """(the pass that this process is in, the block that it has come to)."""
        self._used: set[int] = set()
        """Of `_numbered`, the weights that had a gradient here."""
        self._cut: dict[int, list[nn.Parameter]] = {n: block.params() for n, block in enumerate(self.blocks)}
        for number, block in enumerate(self.blocks):
            block.module.register_forward_pre_hook(lambda *_, n=number: self._before(n))
            block.module.register_forward_hook(lambda _module, _inputs, output, n=number: self._after(n, output))

    def meet(self) -> None:
        """Takes part in what others still want, until nobody wants anything: before all come to something else together."""
        self._close()
        self._turn(NOTHING)

    def _turn(self, wanted: int) -> None:
        """Comes back when it is this process's turn."""
        while True:
            asked = torch.tensor(wanted, device=self._device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MIN, group=self._group)
            turn = int(asked)
            if turn == wanted:
                return
            self._take_part(turn)

    def _take_part(self, turn: int) -> None:
        last = len(self.blocks) - 1
        for number in range(last + 1) if turn == FORWARD else range(last, self._first - 1, -1):
            self._gather(number)
            self._give_back(number, reduce=turn == BACKWARD)

    def _before(self, number: int) -> None:
        if self._at == (BACKWARD, number):  # computed again, with the weights at hand
            return
        if number == 0:
            self._close()
            self._turn(FORWARD)
        elif self._at != (FORWARD, number - 1):
            raise _out_of_order(self._at, FORWARD, number)
        self._gather(number)
        self._at = (FORWARD, number)

    def _after(self, number: int, output: Any) -> None:
        if self._at == (BACKWARD, number):
            return
        self._give_back(number)
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient, n=number: self._before_backward(n))

    def _before_backward(self, number: int) -> None:
        """A node of a graph runs after all that were made later: when that of an output does, the blocks behind it are done."""
        if self._at == (BACKWARD, number):  # another of its outputs
            return
        if number == len(self.blocks) - 1:
            self._close()
            self._turn(BACKWARD)
            torch.autograd.Variable._execution_engine.queue_callback(self._close)  # when all of the graph is done
        elif self._at == (BACKWARD, number + 1) and number >= self._first:
            self._give_back(number + 1, reduce=True)
        else:
            raise _out_of_order(self._at, BACKWARD, number)
        self._gather(number)
        self._at = (BACKWARD, number)

    def _close(self) -> None:
        """Ends the pass that this process is in, as those do that only take part."""
        at, self._at = self._at, None
        if at is None:
            return
        turn, number = at
        if turn == FORWARD and number < len(self.blocks) - 1:
            raise _out_of_order(at, FORWARD, 0)
        if turn == BACKWARD:
            self._give_back(number, reduce=True)
            for before in range(number - 1, self._first - 1, -1):
                self._gather(before)
                self._give_back(before, reduce=True)

    def _gather(self, number: int) -> None:
        with phase("gather"):
            self.blocks[number].unit.unshard()
        if self._wide is not None:
            for p in self.blocks[number].params():
                p.grad_dtype = self._wide

    def _give_back(self, number: int, *, reduce: bool = False) -> None:
        """The weights, and with `reduce` their gradients, which are added to those of the cut ones."""
        block = self.blocks[number]
        gradients = []
        for position, p in enumerate(block.params() if reduce else ()):
            if p.grad is not None:
                self._used.add(self._numbered(number, position))
            gradients.append((p.grad, p.shape))
            p.grad = None
        block.unit.reshard()
        if gradients:
            with phase("gather"):
                self._add(self._cut[number], gradients)

    def _add(self, cut: Sequence[nn.Parameter], gradients: Sequence[tuple[Tensor | None, torch.Size]]) -> None:
        dtype = cut[0].dtype if len({p.dtype for p in cut}) == 1 else torch.float32
        pieces = []
        for whole, shape in gradients:
            rows = -(-shape[0] // self._parts) * self._parts
            padded = torch.zeros(rows, *shape[1:], dtype=dtype, device=self._device)
            if whole is not None:
                padded[: shape[0]] = whole
            pieces.append(padded.view(self._parts, -1))
        sent = torch.cat(pieces, dim=1)
        own = torch.empty(sent.shape[1], dtype=dtype, device=self._device)
        torch.distributed.reduce_scatter_tensor(own, sent.flatten(), group=self._group)
        for p, part in zip(cut, own.split([piece.shape[1] for piece in pieces]), strict=True):
            local = p.to_local()
            part = part[: local.numel()].view_as(local).to(p.dtype)
            if p.grad is None:
                p.grad = _as(p, part.clone())
            else:
                p.grad.to_local().add_(part)

    def add_up_copies(self) -> None:
        """Once an update, after `meet`: sums over processes that hold the same parts. A weight without a gradient everywhere has none."""
        cut = [(self._numbered(number, i), p) for number, ps in self._cut.items() for i, p in enumerate(ps)]
        used = torch.tensor([number in self._used for number, _ in cut], dtype=torch.int32, device=self._device)
        torch.distributed.all_reduce(used)
        for (_, p), processes in zip(cut, used.tolist(), strict=True):
            if not processes:
                p.grad = None
                continue
            if p.grad is None:
                p.grad = _as(p, torch.zeros_like(p.to_local()))
            if self._copies is not None:
                torch.distributed.all_reduce(p.grad.to_local(), group=self._copies)
        self._used.clear()

    def _numbered(self, block: int, position: int) -> int:
        return block * 10_000 + position


def _as(like: Any, part: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [t for part in output for t in _tensors(part)] if isinstance(output, list | tuple) else []


def _out_of_order(at: tuple[int, int] | None, turn: int, number: int) -> TrainingStopped:
    name = {FORWARD: "forward", BACKWARD: "backward", NOTHING: "no"}
    here = "outside its blocks" if at is None else f"at block {at[1]} of a {name[at[0]]} pass"
    return TrainingStopped(
        f"the network is {here} and goes to block {number} of a {name[turn]} pass: with distributed.gather = forward it has to go "
        "through all its blocks in their order. Use gather=phase."
    )
