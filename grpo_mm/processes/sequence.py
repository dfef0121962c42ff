"""Processes that hold one row between them: each some of its tokens, or, while tokens attend to each other, all tokens of some heads.

The exchange is that of arXiv:2309.14509 (DeepSpeed-Ulysses). Gradients: each process makes a part of every weight's, and their sum
is the whole, as it is with processes that hold different rows.

    n processes   H heads   T tokens of all, t = T / n of one   D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class SequenceGroup:
    """The processes of a row, as one of them sees them. All operations are met by all of them, in one order."""

    group: Any
    """torch's group of processes."""
    place: int
    """Which part of the tokens is ours, from 0."""
    size: int

    def filled(self, tokens: int, *, by: int = 1) -> int:
        """The least number of tokens from `tokens` on whose parts are alike, and multiples of `by`."""
        return -(-tokens // (self.size * by)) * self.size * by

    def own(self, tensor: Tensor, dim: int, *, filled: int) -> Tensor:
        """Our part of a tensor that all processes have, filled up with zeros on the right along `dim` to `filled`."""
        dim, short = dim % tensor.ndim, filled - tensor.shape[dim]
        if short:
            tensor = pad(tensor, (*(0, 0) * (tensor.ndim - 1 - dim), 0, short))
        return tensor.chunk(self.size, dim)[self.place]

    def to_heads(self, tensor: Tensor) -> Tensor:
        """[b, H, t, D] to [b, H / n, T, D]."""
        sent = tensor.unflatten(1, (self.size, -1)).movedim(1, 0)
        return _AllToAll.apply(sent, self.group).movedim(0, 2).flatten(2, 3)

    def to_tokens(self, tensor: Tensor) -> Tensor:
        """[b, H / n, T, D] to [b, H, t, D]."""
        sent = tensor.unflatten(2, (self.size, -1)).movedim(2, 0)
        return _AllToAll.apply(sent, self.group).movedim(0, 1).flatten(1, 2)

    def gathered(self, tensor: Tensor, dim: int) -> Tensor:
        """The parts of all processes along `dim`, for what each goes on to do something of its own with: gradients add up."""
        sent = tensor.expand(self.size, *tensor.shape)
        return torch.cat(_AllToAll.apply(sent, self.group).unbind(0), dim)

    def joined(self, tensor: Tensor, dim: int) -> Tensor:
        """The same for what all go on to do the same with: the gradient is that of our own part."""
        parts = list(self.gathered(tensor.detach(), dim).chunk(self.size, dim))
        parts[self.place] = tensor
        return torch.cat(parts, dim)


class _AllToAll(torch.autograd.Function):
    """[n, ...]: entry r goes to process r. It is its own transpose."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, group: Any) -> Tensor:
        ctx.group, sent = group, sent.contiguous()
        found = torch.empty_like(sent)
        torch.distributed.all_to_all_single(found, sent, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.apply(grad, ctx.group), None
