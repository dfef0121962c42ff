"""One process or many, behind the few operations the core needs; accelerate starts and places the processes."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError


class Processes:
    """Rank, world size, device, and sums over ranks. World size 1 needs no launcher and no communication."""

    def __init__(self, *, device: str = "auto") -> None:
        from accelerate import Accelerator

        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device is {device!r}, but torch sees no CUDA device here. Use device=cpu or device=auto."
            )
        cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        self.accelerator = Accelerator(cpu=cpu)
        self.rank = self.accelerator.process_index
        self.world = self.accelerator.num_processes
        self.device = self.accelerator.device
        if self.world > 1:
            _leave_at_exit()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, thing: Any) -> list[Any]:
        """`thing` of every rank, in rank order, on every rank. For small CPU tables."""
        if self.world == 1:
            return [thing]
        things: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(things, thing)
        return things

    def sum(self, value: float) -> float:
        return float(sum(self.gather(value)))

    def max(self, value: float) -> float:
        return float(max(self.gather(value)))

    def sync_gradients(self, params: Sequence[nn.Parameter]) -> None:
        """Sums the gradients over ranks. Every term has a global denominator, so a sum is what is wanted."""
        if self.world == 1:
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
        if self.world > 1:
            self.accelerator.wait_for_everyone()


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


@cache
def _leave_at_exit() -> None:
    """Ends the communication before the interpreter does: its threads would abort a process that has done its work."""
    atexit.register(lambda: torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None)
