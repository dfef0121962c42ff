"""Bytes and floating-point operations of code that runs on tensors without numbers (the meta device), counted as an allocator would."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_ACTIVE: list[Counter] = []


class Counter(TorchDispatchMode):
    """Follows every storage that is made while it is on, from its birth to its end.

    live, peak: bytes of these storages now, and at most. copies: of these at the peak, weights that autocast has cast.
    flops: of products, convolutions and attention, a multiply-add as two.

    Whole numbers may stay on the CPU, where code asks for their values: what meets a meta tensor counts as one.
    `device`: which storages count; "cpu" measures a real run in the same way.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device, self.live, self.peak, self.copies, self.flops = device, 0, 0, 0, 0
        self._seen: dict[int, int] = {}
        self._cast: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.device == "meta" and func is _aten._to_copy.default and _stays_whole(args[0], kwargs):
            kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        given = _tensors((*args, *kwargs.values()))
        for tensor in given:
            if self._counts(tensor):
                self._born(tensor.untyped_storage(), size=0)  # it was there before
        packet = getattr(func, "_overloadpacket", None)
        metas = sum(tensor.is_meta for tensor in given)
        if 0 < metas < len(given) and func not in _ACROSS:
            if packet in _INDEXING:
                args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
            args, kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
        made = func(*args, **kwargs)
        if packet in flop_registry and given and given[0].device.type == self.device:
            self.flops += int(flop_registry[packet](*args, **kwargs, out_val=made))
        for tensor in _tensors((made,)):
            if self._counts(tensor):
                self._born(tensor.untyped_storage())
        return made

    def __enter__(self) -> Any:
        _ACTIVE.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _ACTIVE.remove(self)
        super().__exit__(*error)

    def _counts(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device or _is_whole(tensor)

    def _born(self, storage: Any, size: int | None = None) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = size = storage.nbytes() if size is None else size
        self.live += size
        if self.live > self.peak:
            self.peak, self.copies = self.live, sum(self._cast.values())
        weakref.finalize(storage, self._ended, key).atexit = False

    def _ended(self, key: int) -> None:
        self.live -= self._seen.pop(key, 0)
        self._cast.pop(key, None)

    def casts(self, tensor: Tensor) -> None:
        """Takes down that this is a copy of a weight."""
        self._cast[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()


_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_ACROSS = (_aten._to_copy.default, _aten.copy_.default)


def _is_whole(tensor: Tensor) -> bool:
    """A mask or indices with values."""
    return tensor.device.type == "cpu" and not tensor.is_floating_point()


def _stays_whole(tensor: Tensor, kwargs: Any) -> bool:
    dtype = kwargs.get("dtype")
    return _is_whole(tensor) and (dtype is None or not dtype.is_floating_point)


def _tensors(things: Any) -> list[Tensor]:
    found = []
    for thing in things:
        if isinstance(thing, Tensor):
            found.append(thing)
        elif isinstance(thing, (tuple, list)):
            found += _tensors(thing)
    return found


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask as the places that it picks: their number is only known while it has values."""
    is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
    return torch.nonzero(index).unbind(1) if is_mask else (index,)


def _without_numbers(tensor: Tensor) -> Tensor:
    return (
        tensor
        if tensor.is_meta
        else torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    )


class AsOnDevice(TorchFunctionMode):
    """What kernels of a real device do and the meta device does not: attention without its score matrix, and autocast.

    Source of the rules of autocast: torch's list of operations that run in the lower precision; the others promote.
    """

    def __init__(self) -> None:
        super().__init__()
        self._casts: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.backward, torch.autograd.backward):
            with self:  # layers may be computed again within, which is to be seen here
                return _backward(*args, **kwargs)
        if not torch.is_autocast_enabled("cpu"):
            self._casts.clear()
        elif func in _LOWER:
            args, kwargs = tree_map_only(Tensor, self._cast, (args, kwargs))
        elif func in _WIDER:
            args, kwargs = tree_map_only(Tensor, lambda t: t.float() if _is_low(t) else t, (args, kwargs))
        if func is F.scaled_dot_product_attention and (args[0] if args else kwargs["query"]).is_meta:
            return _attention(*args, **kwargs)  # some callers name its arguments, as diffusers does
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
            for counter in _ACTIVE:
                counter.casts(self._casts[id(tensor)])
        return self._casts[id(tensor)]


def _backward(tensors: Any, grad_tensors: Any = None, *_: Any, gradient: Any = None, **__: Any) -> None:
    """Without the doors of torch.autograd.backward, which take the mode off."""
    tensors = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
    given = grad_tensors if gradient is None else gradient
    given = (given,) * len(tensors) if given is None or isinstance(given, Tensor) else tuple(given)
    gradients = tuple(torch.ones_like(t) if g is None else g for t, g in zip(tensors, given, strict=True))
    _engine_run_backward(tensors, gradients, False, False, (), allow_unreachable=True, accumulate_grad=True)


def _is_low(tensor: Tensor) -> bool:
    return tensor.is_meta and tensor.dtype in (torch.bfloat16, torch.float16)


_LOWER = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.mm, torch.addmm,
    torch.baddbmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, torch.conv2d, torch.conv3d,
}  # fmt: skip
_WIDER = {
    F.layer_norm,
    F.group_norm,
    F.softmax,
    F.log_softmax,
    torch.softmax,
    torch.log_softmax,
    F.rms_norm,
    torch.layer_norm,
}


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # kernels add a mask to the scores
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
    return _Flash.apply(query, key, value, attn_mask, key.shape[-2])


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, length_w: Tensor) -> Tensor:
    """Attention within windows of these lengths, all at once: [n, heads, tokens, D] to [n, tokens, heads, D].

    Stands for a call a window and the join of their outputs, which it takes the memory and the operations of.
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
    keys = float(length_w.double().square().sum() / length_w.sum())
    found = _Flash.apply(query, key, value, None, keys).transpose(1, 2)
    return torch.cat(found.split(-(-found.shape[1] // 2), 1), 1)


class _Flash(torch.autograd.Function):
    """A flash kernel's memory: it keeps its inputs, the output and one number a row, never the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, keys: float) -> Tensor:
        """`keys`: that a query meets on average."""
        # Kernels put the heads last but one, so that the transposition after them is free.
        shape = (*query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-1])
        found = query.new_empty(shape).transpose(-3, -2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, found, sums)
        ctx.keys = keys
        _add_flops(2.0, query, keys)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        _add_flops(5.0, query, ctx.keys)
        return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), None, None


def _add_flops(products: float, query: Tensor, keys: float) -> None:
    """Of so many products of all queries with their keys; a causal mask is not made use of."""
    for counter in _ACTIVE:
        counter.flops += int(products * query.numel() * keys) * 2
