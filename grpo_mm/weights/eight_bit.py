"""What bitsandbytes is used for: AdamW whose moments have 8 bits, and frozen linear layers of 4 or 8 bits. Optional."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from grpo_mm.errors import ConfigError
from grpo_mm.ledger.quantized import BLOCK, QuantizedLinear, layers_of

log = logging.getLogger(__name__)

Quantized = Literal["nf4", "int8"]


def bitsandbytes(what: str) -> Any:
    """The package. Raises ConfigError, with what installs it, where it is missing."""
    try:
        import bitsandbytes as found
    except ImportError as error:
        raise ConfigError(f"{what} needs bitsandbytes: pip install 'grpo_mm[quant]'.") from error
    return found


def quantize(roots: Iterable[nn.Module], kind: Quantized, *, compute: torch.dtype, skip: Iterable[str] = ()) -> int:
    """Replaces the linear layers below some modules by frozen ones of 4 or 8 bits; gives how many. Layers without numbers, on the meta
    device, are replaced by what counts as such, without the package.

    nf4: blocks of 64 weights share a scale (QLoRA, arXiv:2305.14314, without double quantisation). int8: rows share one. Either way a
    forward multiplies in `compute`, whatever the device and the mode, and inputs are not rounded: LLM.int8() does that as well
    (arXiv:2208.07339), so that the last digit of an input could move a ratio. Sampling and training see the same numbers.

    Args:
        skip: names of layers, at any depth, that stay as they are. So do those whose width is no multiple of 64, which is logged.

    Raises:
        ConfigError: bitsandbytes is missing, or no layer can be quantized.
    """
    modules, left = [m for root in roots for m in root.modules()], set(skip)
    counting = any(p.is_meta for module in modules for p in module.parameters(recurse=False))
    library = None if counting else bitsandbytes(f"policy.quantize = {kind}")
    found, odd = 0, 0
    for module in modules:
        for name, layer in list(module.named_children()):
            if type(layer) is not nn.Linear or name in left:
                continue
            if layer.in_features % BLOCK:
                odd += 1
                continue
            made = (
                QuantizedLinear(layer, kind, compute=compute) if counting else _quantized(library, layer, kind, compute)
            )
            setattr(module, name, made)
            found += 1
    if not found:
        raise ConfigError(f"policy.quantize = {kind}: no linear layer has a width that is a multiple of {BLOCK}.")
    if odd and not counting:
        log.warning("policy.quantize: %d linear layers stay as they are, their width is no multiple of %d", odd, BLOCK)
    return found


def mark_quantized(model: nn.Module, kind: Quantized) -> None:
    """So that peft puts an adapter on such layers as on others; on those that only count it does anyway."""
    if layers_of(model):
        return
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"  # type: ignore[assignment]


def moments_of_8_bits(params: list[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    """AdamW whose moments are stored in blocks of 8-bit numbers (arXiv:2110.02861); those of small tensors stay float32."""
    return bitsandbytes("optim.moments = 8bit").optim.AdamW8bit(params, **settings)


def _quantized(library: Any, layer: nn.Linear, kind: Quantized, compute: torch.dtype) -> nn.Module:
    sizes = {"bias": layer.bias is not None}
    weight = layer.weight.data.to(compute)
    if kind == "nf4":
        made = library.nn.Linear4bit(
            layer.in_features, layer.out_features, compute_dtype=compute, quant_type="nf4", **sizes
        )
        made.weight = library.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=False, module=made
        )
        # Else some CPUs repack the weights when first asked without gradient, for a kernel that has none and rounds to bfloat16.
        made.support_avx512bf16_for_cpu = False
    else:
        made = _linear_of_8_bits(library)(
            layer.in_features, layer.out_features, has_fp16_weights=False, threshold=0.0, **sizes
        )
        made.weight = library.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        made.compute = compute
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return made.to(layer.weight.device)


@lru_cache
def _linear_of_8_bits(library: Any) -> type:
    class LinearOf8Bits(library.nn.Linear8bitLt):
        """The package's layer, which peft knows, with a product of its own."""

        def forward(self, x: Tensor) -> Tensor:
            if self.weight.CB is not None:
                self.init_8bit_state()
            bias = None if self.bias is None else self.bias.to(self.compute)
            return _Unpacked.apply(x.to(self.compute), self.weight.data, self.state.SCB, bias).to(x.dtype)

    return LinearOf8Bits


class _Unpacked(torch.autograd.Function):
    """x @ (code × scale of its row / 127)ᵀ + bias; weights are unpacked once more for the gradient, no graph holds them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, code_oi: Tensor, scale_o: Tensor, bias_o: Tensor | None) -> Tensor:
        ctx.weight = code_oi, scale_o, x.dtype
        return functional.linear(x, _numbers(*ctx.weight), bias_o)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad @ _numbers(*ctx.weight), None, None, None


def _numbers(code_oi: Tensor, scale_o: Tensor, dtype: torch.dtype) -> Tensor:
    return code_oi.to(dtype).mul_((scale_o / 127)[:, None])
