"""A pretended accelerator: CPU numbers on another device type, under CUDA's rules of placement, with crossings counted.

A tensor on it is a `Pretended`: a shell that says device "pretended:0" around a CPU tensor that holds the numbers. What CUDA
refuses is refused (`WrongPlace`): tensors of two places in one operation, but for 0-dim CPU tensors in elementwise ones and CPU
indices; CPU generators. What crosses between host and device is counted by the function of this repository that asked for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pretended_rules import check_places, waits_for
from pretended_where import place
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyDeviceGuard,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"
aten = torch.ops.aten


class Crossings:
    """How often what crossed, by (kind, "file:function").

    Kinds. upload: a tensor goes to the device. download: one comes from it. item: one number is read. shape: how many elements
    there are is data (nonzero, masks as indices, unique). The host waits for the device in all but the first.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def note(self, kind: str) -> None:
        self.counts[kind, place()] += 1

    def of(self, *kinds: str, within: str = "") -> int:
        """Crossings of these kinds, or of all, in functions whose "file:function" begins with `within`."""
        return sum(
            n for (kind, where), n in self.counts.items() if where.startswith(within) and (not kinds or kind in kinds)
        )

    def __sub__(self, other: Crossings) -> Crossings:
        found = Crossings()
        found.counts = Counter({key: n - other.counts[key] for key, n in self.counts.items() if n != other.counts[key]})
        return found

    def __str__(self) -> str:
        return "\n".join(f"{n:6} {kind:8} {where}" for (kind, where), n in self.counts.most_common())


_crossings: Crossings | None = None


class Pretended(torch.Tensor):
    """The shell; `inner` [any shape] holds the numbers."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        shell = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )  # fmt: skip
        shell.inner = inner
        return shell

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, dict(kwargs or {}))

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Pretended) -> None:
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def untyped_storage(self) -> torch.UntypedStorage:
        """That of the numbers, which tells writers of files which tensors are one."""
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a pretended device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any) -> Any:
        self.numpy()

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.dim() == 0 else repr(self)

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.inner!r})"


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    to = kwargs.get("device")
    if operation is aten._to_copy.default:
        return _moved(args[0], None if to is None else torch.device(to), kwargs)
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(leaf, Pretended) for leaf in leaves) or (to is not None and to.type == DEVICE.type)
    check_places(operation, args, kwargs, [isinstance(leaf, Pretended) for leaf in leaves], leaves)
    if operation is aten.copy_.default:
        _note_copy(*args[:2])
    elif there and (kind := waits_for(operation, args, kwargs, Pretended)):
        _note(kind)
    if to is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    found = operation(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    own = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, Pretended)} | {
        id(leaf): leaf for leaf in leaves if not isinstance(leaf, Pretended)
    }
    if operation is aten.copy_.default:
        return args[0]
    return tree_map(lambda leaf: _shell(leaf, own) if isinstance(leaf, torch.Tensor) else leaf, found)


def _shell(found: torch.Tensor, own: dict[int, torch.Tensor]) -> torch.Tensor:
    """An operand that was changed in place is itself again."""
    return own[id(found)] if id(found) in own else Pretended(found)


def _moved(source: torch.Tensor, to: torch.device | None, kwargs: dict[str, Any]) -> torch.Tensor:
    was = isinstance(source, Pretended)
    will = was if to is None else to.type == DEVICE.type
    if was != will:
        _note("upload" if will else "download")
    kept = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "non_blocking")}
    copy = aten._to_copy.default(_inner(source), device=torch.device("cpu"), **kept)
    return Pretended(copy) if will else copy


def _note_copy(target: torch.Tensor, source: torch.Tensor) -> None:
    if isinstance(target, Pretended) != isinstance(source, Pretended):
        _note("upload" if isinstance(target, Pretended) else "download")


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, Pretended) else leaf


def _note(kind: str) -> None:
    if _crossings is not None:
        _crossings.note(kind)


class _Module(_DummyBackendModule):
    def is_available(self) -> bool:
        return _crossings is not None

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Hook(_DummyPrivateUse1Hook):
    """There is an accelerator while crossings are counted; other tests of the process see none."""

    def is_available(self) -> bool:
        return _crossings is not None


_setup_privateuseone_for_python_backend(NAME, _Module(), _Hook(), _DummyDeviceGuard())
DEVICE = torch.device(NAME, 0)
# Factories (zeros, arange, a copy to the device …) come here, as nothing on the device is among their arguments.
_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
_factories = torch.library.Library("aten", "IMPL")
# By torch's own ways the first ones resize what they made, which a shell cannot follow; torch.tensor reads numbers out of a list of
# tensors past the shell.
for _name in ("arange", "arange.start", "arange.start_step", "linspace", "randperm", "_local_scalar_dense"):
    _overload = _name.partition(".")[2] or "default"
    _operation = getattr(getattr(aten, _name.partition(".")[0]), _overload)
    _factories.impl(_name, lambda *a, _operation=_operation, **k: _run(_operation, a, k), "PrivateUse1")


@contextmanager
def counted() -> Iterator[Crossings]:
    """What crosses inside the block, and only there is the device of use. Modules that are moved keep their parameters' identity,
    as on CUDA."""
    global _crossings
    before, _crossings = _crossings, Crossings()
    swapped, lifted = torch.__future__.get_swap_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes a CPU tensor, then moves it
    try:
        yield _crossings
    finally:
        _crossings = before
        torch.__future__.set_swap_module_params_on_conversion(swapped)
        torch._C._set_only_lift_cpu_tensors(lifted)
