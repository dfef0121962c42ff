"""The weights of a network, cut over processes by torch's `fully_shard`: gathered once a phase, gradients added up once an update.

Between the two no process waits for another, so that they may differ in their prompts, rows, forwards and tokens. Optimiser,
copies of the weights and checkpoints see the cut weights only (ZeRO-2; FSDP2, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError
from grpo_mm.processes.clock import phase
from grpo_mm.processes.turns import Block, Turns


class Shards:
    """A network whose weights are cut along their first axis, over the last axis of a mesh, and are alike along the first one."""

    def __init__(
        self,
        network: nn.Module,
        units: Sequence[Sequence[nn.Module]],
        mesh: Any,
        *,
        compute: torch.dtype | None = None,
        in_forward: bool = False,
    ) -> None:
        """Every process has to begin with the same bytes: nothing is sent.

        Args:
            units: modules whose weights are gathered in one message; those that no unit holds are another unit. Modules that
                share a weight belong into one.
            compute: what gathered weights are, and with it what the network computes in; None: as the weights are. Their
                gradients add up as the weights are, in float32.
            in_forward: weights of the units, which have one module each, are whole only while a pass is in them (`Turns`); what no
                unit holds is gathered once a phase.

        Raises:
            ConfigError: this torch is too old for it.
        """
        check_torch(reduced=compute is not None)
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.network, self.mesh, self.depth = network, mesh, 0
        self._device = torch.device(mesh.device_type)
        self._wide = None if compute is None else torch.promote_types(compute, torch.float32)
        precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=self._wide, cast_forward_inputs=False)
        own = [_Unit(modules) for modules in _all_units(network, units)]
        for unit in own:
            fully_shard(unit, mesh=mesh, reshard_after_forward=False, mp_policy=precision)
            unit.set_gradient_divide_factor(1.0)  # terms have global denominators: a sum is what is wanted
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_reshard_after_backward(False)
            unit.set_requires_gradient_sync(False)
        come_and_go = min(len(units), len(own)) if in_forward else 0
        self.units = own[come_and_go:]
        self.turns: Turns | None = None
        if in_forward:
            blocks = [Block(module, unit) for (module,), unit in zip(units, own[:come_and_go], strict=True)]
            rest = any(p.requires_grad for unit in self.units for p in unit.parameters())
            self.turns = Turns(blocks, mesh, trained_before=rest, wide=self._wide)

    def meet(self) -> None:
        """Before processes do something else together, while weights are gathered: they need not be equally far."""
        if self.turns is not None and self.depth:
            self.turns.meet()

    @property
    def are_gathered(self) -> bool:
        return self.depth > 0

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within, the network has whole weights. All processes enter and leave together; inside another one it does nothing."""
        if not self.depth:
            with phase("gather"):
                self._gather()
        self.depth += 1
        try:
            yield
            if self.depth == 1:
                self.meet()
        finally:
            self.depth -= 1
            if not self.depth:
                for unit in self.units:
                    unit.reshard()

    def _gather(self) -> None:
        for unit in self.units:
            unit.unshard()
        for p in (p for unit in self.units for p in unit.parameters()) if self._wide is not None else ():
            if p.requires_grad:
                p.grad_dtype = self._wide

    def whole(self) -> Mapping[str, nn.Parameter]:
        """The weights as they are in the network now, by name; while they are gathered these are whole, but for blocks whose weights
        come and go."""
        return dict(self.network.named_parameters())

    def add_up_gradients(self) -> None:
        """What whole weights have gathered in `.grad` on all processes becomes the gradient of the cut ones.

        A weight without a gradient on every process stays without one, as where nothing is cut.
        """
        if self.turns is not None:
            self.turns.meet()
            self.turns.add_up_copies()
        own = [p for unit in self.units for p in unit.parameters() if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in own], dtype=torch.int32, device=self._device)
        torch.distributed.all_reduce(used)
        for unit in self.units:
            if not any(p.requires_grad for p in unit.parameters()):
                continue
            unit.set_requires_gradient_sync(True)
            zero = torch.zeros((), device=self._device, requires_grad=True)
            unit(zero).backward()
            unit.set_requires_gradient_sync(False)
            unit.reshard()
        cut = [p for unit in self.units for p in unit.parameters() if p.requires_grad]
        for p, processes in zip(cut, used.tolist(), strict=True):
            if not processes:
                p.grad = None


def gathered(shards: Shards | None) -> Any:
    """`Shards.gathered` of what may not be cut."""
    return nullcontext() if shards is None else shards.gathered()


class _Unit(nn.Module):
    """Weights that travel together. They stay where they are: it shares the modules' own tables of parameters, so that hooks
    and the class that `fully_shard` makes are those of this object, and the network is left as it was."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.tables = nn.ModuleList([_Table(module) for module in modules])

    def forward(self, zero: Tensor) -> Tensor:
        """A pass that reaches every weight with a gradient of 0, so that torch adds up what there is already."""
        trained = (p for p in self.parameters() if p.requires_grad)
        return sum((p.flatten()[:0].sum().to(zero.dtype) for p in trained), start=zero * 1.0)


class _Table(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters = module._parameters


def _all_units(network: nn.Module, units: Sequence[Sequence[nn.Module]]) -> list[list[nn.Module]]:
    """Modules that hold weights themselves, by unit; the last unit is what the others leave."""
    found, seen = [], set()
    for members in [*units, [network]]:
        here = [m for member in members for m in member.modules() if m._parameters and id(m) not in seen]
        here = [m for m in dict.fromkeys(here) if any(p is not None for p in m._parameters.values())]
        seen |= {id(m) for m in here}
        if here:
            found.append(here)
    return found


def check_torch(*, reduced: bool) -> None:
    """Raises ConfigError if this torch lacks what weights that are cut need. reduced: they are computed with in bfloat16."""
    try:
        from torch.distributed.fsdp import FSDPModule

        enough = hasattr(FSDPModule, "set_force_sum_reduction_for_comms") and hasattr(
            FSDPModule, "set_gradient_divide_factor"
        )
    except ImportError:
        enough = False
    if not enough or (reduced and not hasattr(Tensor, "grad_dtype")):
        what = "in bfloat16 " if enough else ""
        raise ConfigError(
            f"distributed.kind = sharded {what}needs a newer torch than {torch.__version__}. Install one, or set distributed.kind=replicated."
        )
