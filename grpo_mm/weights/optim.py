"""The optimiser and its learning rate, a pure function of the number of updates so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE, NOTED
from grpo_mm.weights.eight_bit import moments_of_8_bits


@dataclass(frozen=True)
class Optim:
    """AdamW; the defaults are those of the Flow-GRPO scripts (flow models, LoRA)."""

    lr: float = field(default=3e-4, metadata=NOTED)
    """Learning rate, at its highest."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata=NOTED)
    """Of AdamW."""
    weight_decay: float = field(default=1e-4, metadata=NOTED)
    """Of AdamW, times the learning rate."""
    eps: float = field(default=1e-8, metadata=NOTED)
    """Of AdamW."""
    max_grad_norm: float = field(default=1.0, metadata=NOTED)
    """Longer gradients are scaled down to it."""
    warmup_updates: int = field(default=0, metadata=NOTED)
    """Adam's first updates are sign steps of full length: without warm-up they leave a narrow clip range at once."""
    schedule: Literal["constant", "linear", "cosine"] = field(default="constant", metadata=NOTED)
    """linear and cosine fall to 0 at the last update."""
    moments: Literal["float32", "8bit"] = "float32"
    """How the two moments of AdamW are stored. 8bit: a quarter of the memory (bitsandbytes), and slightly other updates."""
    fused: bool = field(default=False, metadata=FREE)
    """One kernel for all of an update (torch's fused AdamW): faster, without the root of the whole second moment in memory, and other
    roundings. A run may go on with or without it."""
    max_bad_updates: int = field(default=5, metadata=FREE)
    """Non-finite updates in a row (each is skipped) after which the run stops."""

    def __post_init__(self) -> None:
        for name, least in (("lr", 0), ("weight_decay", 0), ("warmup_updates", 0), ("max_bad_updates", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"optim.{name} = {getattr(self, name)}; wanted at least {least}.")
        if not self.max_grad_norm > 0 or not self.eps > 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"optim: max_grad_norm = {self.max_grad_norm} and eps = {self.eps} must be above 0, betas = {self.betas} in [0, 1)."
            )

    def build(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Raises ConfigError for 8-bit moments without bitsandbytes, or of weights that are cut over processes."""
        settings: dict[str, Any] = {
            "lr": self.lr, "betas": self.betas, "weight_decay": self.weight_decay, "eps": self.eps
        }  # fmt: skip
        if self.moments == "float32":
            return torch.optim.AdamW(params, **settings, **({"fused": True} if self.fused else {}))
        if any(hasattr(p, "to_local") for p in params):
            raise ConfigError(
                "optim.moments = 8bit: not with distributed.kind = sharded, which cuts the moments as they are."
            )
        return moments_of_8_bits(params, **settings)

    def lr_at(self, update: int, total_updates: int) -> float:
        """The learning rate of update number `update`, counted from 0."""
        warm = min(1.0, (update + 1) / (self.warmup_updates + 1))
        left = max(0.0, 1 - update / max(1, total_updates))
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[self.schedule]
        return self.lr * warm * shape


def grad_norm(params: list[nn.Parameter]) -> Tensor:
    """The L2 norm over all gradients (sharded ones included), as a float tensor."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(grads)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
