"""Bytes and floating-point operations of code that runs on tensors without numbers (the meta device), counted as an allocator would."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only, tree_flatten
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten


class Counter(TorchDispatchMode):
    """Follows every storage that is made while it is on, from its birth to its end.

    live, peak: bytes of these storages now, and at most. flops: of products, convolutions and attention, a multiply-add as two.

    Whole numbers may stay on the CPU, where code asks for their values: what meets a meta tensor counts as one.
    `device`: which storages count; "cpu" measures a real run in the same way.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device, self.live, self.peak, self.flops = device, 0, 0, 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten._to_copy.default and _is_whole(args[0]) and not kwargs.get("dtype", torch.int64).is_floating_point:
            kwargs = {name: value for name, value in kwargs.items() if name != "device"} if self.device == "meta" else kwargs
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if any(t.is_meta for t in given) and not all(t.is_meta for t in given) and func not in _ACROSS:
            if getattr(func, "_overloadpacket", None) in _INDEXING:
                args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
            args, kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
        made = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        if packet in flop_registry and any(t.device.type == self.device for t in given):
            self.flops += int(flop_registry[packet](*args, **kwargs, out_val=made))
        for leaf in tree_flatten(made)[0]:
            if isinstance(leaf, Tensor) and (leaf.device.type == self.device or _is_whole(leaf)):
                self._born(leaf.untyped_storage())
        return made

    def hold(self, *tensors: Tensor) -> None:
        """Counts tensors that were made before."""
        for tensor in tensors:
            self._born(tensor.untyped_storage())

    def _born(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._ended, key).atexit = False

    def _ended(self, key: int) -> None:
        self.live -= self._seen.pop(key, 0)


_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_ACROSS = (_aten._to_copy.default, _aten.copy_.default)


def _is_whole(tensor: Tensor) -> bool:
    """A mask or indices with values."""
    return tensor.device.type == "cpu" and not tensor.is_floating_point()


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask as the places that it picks: their number is only known while it has values."""
    is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
    return torch.nonzero(index).unbind(1) if is_mask else (index,)


def _without_numbers(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class AsOnDevice(TorchFunctionMode):
    """What kernels of a real device do and the meta device does not: attention without its score matrix, and autocast.

    Source of the rules of autocast: torch's list of operations that run in the lower precision; the others promote.
    """

    def __init__(self) -> None:
        super().__init__()
        self._casts: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_autocast_enabled("cpu"):
            self._casts.clear()
        elif func in _LOWER:
            args, kwargs = tree_map_only(Tensor, self._cast, (args, kwargs))
        elif func in _WIDER:
            args, kwargs = tree_map_only(Tensor, lambda t: t.float() if _is_low(t) else t, (args, kwargs))
        if func is F.scaled_dot_product_attention and args and args[0].is_meta:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, tensor: Tensor) -> Tensor:
        """Trained weights are cast once while autocast is on, as torch's cache has it."""
        low = torch.get_autocast_dtype("cpu")
        if not tensor.is_meta or tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and torch.is_autocast_cache_enabled()):
            return tensor.to(low)
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = tensor.to(low)
        return self._casts[id(tensor)]


def _is_low(tensor: Tensor) -> bool:
    return tensor.is_meta and tensor.dtype in (torch.bfloat16, torch.float16)


_LOWER = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.mm, torch.addmm,
    torch.baddbmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, torch.conv2d, torch.conv3d,
}  # fmt: skip
_WIDER = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, F.rms_norm, torch.layer_norm}


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """A flash kernel: it keeps the output and one number a row, never the scores."""
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    lead = query.shape[:-3]
    if len(lead) != 1:
        query, key, value = (t.reshape(-1, *t.shape[-3:]) for t in (query, key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device="meta")
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return found.reshape(*lead, *found.shape[-3:])
