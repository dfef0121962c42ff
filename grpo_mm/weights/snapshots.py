"""Copies of the trainable weights: the reference, the policy that sampled, an average over updates."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from grpo_mm.identity import NOTED
from grpo_mm.processes.shards import Shards
from grpo_mm.weights.adapters_off import adapters_back, adapters_off, does_nothing
from grpo_mm.weights.checkpoint import check_fit
from grpo_mm.weights.pieces import as_cut, full, shapes_of

AHEAD = "ahead"
"""The copy of the weights that the next step's rows are drawn with; `AHEAD NAME`: of another copy that the engine reads."""


@dataclass(frozen=True)
class Ema:
    """decay = min((1 + n)/(10 + n), `decay`) with n the number of averages so far (Flow-GRPO's warm-up).

    `slope`: min(slope · n, `decay`) instead (AWM's fast average: slope .001, decay .3). `warm_up: false`: `decay` from the first
    average on (GRPO-CARE's slow reference).
    """

    decay: float = field(default=0.9, metadata=NOTED)
    every_updates: int = field(default=8, metadata=NOTED)
    slope: float | None = field(default=None, metadata=NOTED)
    """Growth of the decay from one averaging to the next, up to `decay`; null: as `warm_up` says."""
    warm_up: bool = field(default=True, metadata=NOTED)
    """The decay rises from .1 to `decay` as averages are made; false: `decay` from the first on."""
    evaluate: bool = field(default=True, metadata=NOTED)
    """Evaluation and the product use the averaged weights; false: they only serve as a slow reference."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.every_updates < 1 or (self.slope is not None and self.slope < 0):
            raise ValueError(
                f"decay = {self.decay}, every_updates = {self.every_updates}, slope = {self.slope}; wanted a decay in [0, 1), at "
                "least 1, and a slope of 0 or more."
            )

    def decay_at(self, averages: int) -> float:
        if not self.warm_up:
            return self.decay
        warm = (1 + averages) / (10 + averages) if self.slope is None else self.slope * averages
        return min(warm, self.decay)


@dataclass(frozen=True)
class SamplingPolicy:
    """Rollouts come from a slow copy of the weights: after step i, copy ← η·copy + (1 - η)·weights.

    η = min(`slope` · max(0, i - `start`), `limit`): 0 at first, where the copy is the weights.

    Source: arXiv:2509.16117 (DiffusionNFT), section 3.3: slope .001, limit .5; cautious: start 75, slope .0075, limit .999.
    """

    slope: float = field(default=0.001, metadata=NOTED)
    """Growth of η, the part of the copy that stays, from one training step to the next."""
    limit: float = field(default=0.5, metadata=NOTED)
    """The largest η, below 1."""
    start: int = field(default=0, metadata=NOTED)
    """Training steps during which the copy is the weights themselves."""

    def __post_init__(self) -> None:
        if self.slope < 0 or not 0 <= self.limit < 1 or self.start < 0:
            raise ValueError(
                f"slope = {self.slope}, limit = {self.limit}, start = {self.start}; wanted 0 or more, and a limit below 1."
            )

    def decay_at(self, step: int) -> float:
        return min(self.slope * max(0, step - self.start), self.limit)


@dataclass(frozen=True)
class ReferenceReset:
    """The reference becomes the present policy: every so many steps, or when the logged ref_kl exceeds a bound.

    Source: arXiv:2512.24138 (GARDO), section 4.2; its values are not given (uncertain).
    """

    every: int | None = field(default=None, metadata=NOTED)
    """Training steps between resets; null: not by steps."""
    kl_above: float | None = field(default=None, metadata=NOTED)
    """A step whose logged objective/ref_kl lies above this resets; null: not by KL."""

    def __post_init__(self) -> None:
        if (
            self.every is None
            and self.kl_above is None
            or (self.every is not None and self.every < 1)
            or (self.kl_above is not None and self.kl_above <= 0)
        ):
            raise ValueError(
                f"every = {self.every}, kl_above = {self.kl_above}; wanted at least one of them, every from 1."
            )

    def is_due(self, steps_since: int, ref_kl: float) -> bool:
        return (self.every is not None and steps_since >= self.every) or (
            self.kl_above is not None and ref_kl > self.kl_above
        )


class WeightsMoved(RuntimeError):
    """An engine asks for weights that it had been handed, and others are in place by now."""


class Snapshots:
    """Named copies of named parameters; `use(name)` puts one in place for a while.

    Copies of weights that are cut over processes are cut alike.
    """

    def __init__(
        self, params: Mapping[str, nn.Parameter], shards: Shards | None = None, *, adapted: nn.Module | None = None
    ) -> None:
        """adapted: the model that has adapters, where the parameters are theirs: of a copy of them that does nothing they are
        left out as well, which is quicker."""
        self._params, self._shards, self._adapted = dict(params), shards, adapted
        self._idle: dict[str, bool] = {}
        self._left_out: list[nn.Module] = []
        """Layers whose adapters do not act at this moment, since the copy in place does nothing."""
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._whole: dict[str, dict[str, Tensor]] = {}
        """Copies that are put in place while the weights are gathered."""
        self._updates, self._in_use = 0, ""
        self._thread = threading.local()

    @property
    def which(self) -> tuple[int, str]:
        """Names the weights that are in place: how often they were changed, and the copy that is used instead of them, or "".
        In a thread for which they are held (`as_of`), those."""
        return getattr(self._thread, "which", None) or (self._updates, self._in_use)

    @contextmanager
    def as_of(self, which: tuple[int, str]) -> Iterator[None]:
        """Within, this thread goes on with weights that were in place before, of which an engine has a copy of its own."""
        self._thread.which = which
        try:
            yield
        finally:
            self._thread.which = None

    def check_held(self) -> None:
        """Raises WeightsMoved in a thread that goes on with weights which are no longer in place, or may be changed at any moment."""
        held = getattr(self._thread, "which", None)
        if held is not None:
            raise WeightsMoved(f"the engine lost the weights {held} that it was handed, and these are being trained")

    def changed(self) -> None:
        """The present weights are others from now on."""
        self._updates += 1

    def __contains__(self, name: str) -> bool:
        return name in self._copies

    def take(
        self, name: str, *, dtype: torch.dtype | None = None, of: str | None = None, in_main_memory: bool = False
    ) -> None:
        """Copies the present weights, or those of another copy (`of`), under `name`.

        Args:
            dtype: of a copy that is not averaged; None: float32 or wider.
            in_main_memory: not on the device; weights that are cut over processes stay there.
        """
        self._idle.pop(name, None)
        device = torch.device("cpu") if in_main_memory and self._shards is None else None
        self._copies[name] = {
            k: p.detach().to(device or p.device, dtype or torch.promote_types(p.dtype, torch.float32), copy=True)
            for k, p in (self._params if of is None else self._copies[of]).items()
        }

    def drop(self, name: str) -> None:
        """Lets go of a copy, if there is one."""
        self._copies.pop(name, None)
        self._idle.pop(name, None)

    @contextmanager
    def standing_in(self, others: Mapping[str, str]) -> Iterator[None]:
        """Within, some copies are used for others: name → the copy that stands in."""
        before, idle = self._copies, self._idle
        self._copies, self._idle = before | {name: before[other] for name, other in others.items()}, {}
        try:
            yield
        finally:
            self._copies, self._idle = before, idle

    @torch.no_grad()
    def average(self, name: str, decay: float) -> None:
        """copy ← decay · copy + (1 - decay) · weights."""
        self._idle.pop(name, None)
        for k, p in self._params.items():
            self._copies[name][k].lerp_(p.detach().to(self._copies[name][k].dtype), 1 - decay)

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Runs the block with the weights of `name`, then puts the present ones back bit for bit."""
        before, self._in_use = self._in_use, name
        try:
            with self._in_place(name):
                yield
        finally:
            self._in_use = before

    @contextmanager
    def _in_place(self, name: str) -> Iterator[None]:
        idle, before = self._does_nothing(name), self._left_out
        if idle and not before:
            acts = adapters_off(self._adapted)
        else:  # within a copy that does nothing another may do something
            acts = adapters_back(before) if before and not idle else nullcontext(before)
        with (
            acts as left_out,
            self._written(name),
        ):  # written all the same: what saves or hands over the weights reads them
            self._left_out = left_out
            try:
                yield
            finally:
                self._left_out = before

    @contextmanager
    def _written(self, name: str) -> Iterator[None]:
        params: Mapping[str, Tensor] = self._params
        copy = self._copies[name]
        if self._shards is not None and self._shards.are_gathered:
            whole = self._shards.whole()
            params, copy = {k: whole[k] for k in self._params}, self._whole[name]
        present = {k: p.detach().clone() for k, p in params.items()}
        _write(params, copy)
        try:
            yield
        finally:
            _write(params, present)

    def _does_nothing(self, name: str) -> bool:
        """Processes that hold parts would not see the same."""
        if self._adapted is None or self._shards is not None:
            return False
        if name not in self._idle:
            self._idle[name] = does_nothing(self._copies[name])
        return self._idle[name]

    @contextmanager
    def gathered(self, names: Iterable[str]) -> Iterator[None]:
        """Within, `use` of some copies needs no other process, also while the weights are gathered."""
        self._whole = {name: {k: full(t) for k, t in self._copies[name].items()} for name in sorted(names)}
        try:
            yield
        finally:
            self._whole = {}

    def copy_of(self, name: str) -> Mapping[str, Tensor]:
        """By parameter."""
        return self._copies[name]

    def state(self, *, without: Iterable[str] = ()) -> dict[str, Tensor]:
        """The copies as one flat mapping "name/parameter" → tensor."""
        kept = {name: copy for name, copy in self._copies.items() if name not in without}
        return {f"{name}/{k}": t for name, copy in kept.items() for k, t in copy.items()}

    def load(self, state: Mapping[str, Tensor], *, keep: Iterable[str] = ()) -> None:
        """Replaces all copies but those in `keep`; the devices are those of the parameters, but for what a run draws ahead with, which
        stays in main memory as it was taken. A missing or surplus tensor is an error."""
        shapes, names = shapes_of(state), {}
        for key in state:
            name, _, k = key.partition("/")
            names.setdefault(name, {})[k] = key
        copies = {name: self._copies[name] for name in keep}
        for name, keys in names.items():
            check_fit(
                self._params, {k: shapes[key] for k, key in keys.items()}, what=f"the copy {name!r} of the weights"
            )
            stays = name.partition(" ")[0] == AHEAD and self._shards is None
            copies[name] = {k: state[key] if stays else as_cut(self._params[k], state[key]) for k, key in keys.items()}
        self._copies, self._idle = copies, {}


@torch.no_grad()
def _write(params: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for k, p in params.items():
        p.copy_(values[k])
