"""What CUDA refuses of tensors in two places, and which operations make the host wait for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
ANYWHERE = (aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor)
TAKES_NUMBERS = (aten.fill_.Tensor, aten.masked_fill_.Tensor, aten.masked_fill.Tensor, aten.lerp_.Tensor)
"""Beside those that are tagged as elementwise: a CPU tensor without dimensions is a number to them."""
UNKNOWN_SHAPE = (
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default, aten._unique.default,
)  # fmt: skip
READS = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.allclose.default)


class WrongPlace(RuntimeError):
    """What CUDA would have refused."""


def check_places(
    operation: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    there: Sequence[bool],
    leaves: Sequence[torch.Tensor],
) -> None:
    """Raises WrongPlace for operands that CUDA would not take together. `there`: which of the `leaves` are on the device."""
    to = kwargs.get("device")
    if kwargs.get("generator") is not None and (any(there) or (to is not None and to.type != "cpu")):
        raise WrongPlace(f"{operation}: expected a generator of the device but found 'cpu'.")
    if not any(there) or all(there) or operation in ANYWHERE:
        return
    if operation in INDEXING:
        _check_indices(operation, there, args)
        return
    numbers = torch.Tag.pointwise in operation.tags or operation in TAKES_NUMBERS or operation.namespace == "prims"
    foreach = "_foreach_" in str(operation)
    for leaf, on_device in zip(leaves, there, strict=True):
        if not on_device and not (leaf.dim() == 0 and (numbers or foreach)):
            raise WrongPlace(
                f"{operation}: expected all tensors on one device, found {list(leaf.shape)} {leaf.dtype} on the CPU beside others."
            )


def _check_indices(operation: Any, there: Sequence[bool], args: Sequence[Any]) -> None:
    if not there[0]:
        raise WrongPlace(f"{operation}: a CPU tensor is indexed with, or gets values of, tensors on the device.")
    value = args[2] if len(args) > 2 else None
    if value is not None and value.device.type == "cpu" and value.dim() > 0:
        raise WrongPlace(f"{operation}: the values {list(value.shape)} are on the CPU.")


def waits_for(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], shell: type) -> str | None:
    """The kind of crossing that an operation on the device is, or None."""
    if operation in READS:
        return "item"
    if operation in UNKNOWN_SHAPE:
        return "shape"
    if operation is aten.repeat_interleave.Tensor:
        return None if kwargs.get("output_size") is not None else "shape"
    if operation in INDEXING:
        indices = [index for index in args[1] if index is not None]
        one_value = len(args) > 2 and args[2].numel() == 1
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not one_value:
            return "shape"
        if any(not isinstance(index, shell) for index in indices):
            return "upload"
    return None
