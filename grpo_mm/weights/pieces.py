"""Tensors that are cut over processes along their first axis: whole ones of them, and they of whole ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def is_cut(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """The whole tensor on every process, which all ask for together; one that is not cut as it is."""
    return tensor.full_tensor() if is_cut(tensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """The part that this process holds, a view."""
    return tensor.to_local() if is_cut(tensor) else tensor


def start_of(tensor: Tensor) -> int:
    """Where along the first axis this process's part begins, of a tensor that is cut."""
    size, (part, parts) = tensor.shape[0], place_of(tensor)
    step = -(-size // parts)
    return min(part * step, size)


def holds_first_copy(tensor: Tensor) -> bool:
    """Whether no process of a lower rank holds the same part."""
    mesh = tensor.device_mesh
    return mesh.ndim == 1 or mesh.get_local_rank(0) == 0


def as_cut(like: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, cut and placed as `like` is."""
    if not is_cut(like):
        return whole.to(like.device)
    from torch.distributed.tensor import DTensor

    length, start = own(like).shape[0], start_of(like)
    part = whole[start : start + length].to(like.device).contiguous().clone()
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def put(into: Tensor, whole: Tensor) -> None:
    """Writes a whole tensor into one that may be cut, in place."""
    part = own(into)
    part.copy_(whole[start_of(into) :][: part.shape[0]] if is_cut(into) else whole)


def shapes_of(tensors: Mapping[str, Tensor]) -> Mapping[str, torch.Size]:
    """Of tensors by name; those that lie in files are not read for it."""
    return getattr(tensors, "shapes", None) or {name: tensor.shape for name, tensor in tensors.items()}


def place_of(tensor: Tensor) -> tuple[int, int]:
    """(which part this process holds, how many there are)."""
    mesh = tensor.device_mesh
    return mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)
