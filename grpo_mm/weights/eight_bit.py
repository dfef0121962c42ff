"""What bitsandbytes is used for: AdamW whose moments have 8 bits, and frozen linear layers of 4 or 8 bits. Optional."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from grpo_mm.errors import ConfigError

log = logging.getLogger(__name__)

Quantized = Literal["nf4", "int8"]
BLOCK = 64
"""Weights that share a scale (nf4)."""


def bitsandbytes(what: str) -> Any:
    """The package. Raises ConfigError, with what installs it, where it is missing."""
    try:
        import bitsandbytes as found
    except ImportError as error:
        raise ConfigError(f"{what} needs bitsandbytes: pip install 'grpo_mm[quant]'.") from error
    return found


def quantize(roots: Iterable[nn.Module], kind: Quantized, *, compute: torch.dtype, skip: Iterable[str] = ()) -> int:
    """Replaces the linear layers below some modules by frozen ones of 4 or 8 bits; gives how many.

    nf4: blocks of 64 weights share a scale, forwards multiply in `compute` (QLoRA, arXiv:2305.14314, without double quantisation). int8:
    rows share a scale (LLM.int8(), arXiv:2208.07339, without outlier columns). They are the same in sampling and in training, so a
    ratio of unchanged weights is what it is for any base.

    Args:
        skip: names of layers, at any depth, that stay as they are. So do those whose width is no multiple of 64, which is logged.

    Raises:
        ConfigError: bitsandbytes is missing, or no layer can be quantized.
    """
    library, left = bitsandbytes(f"policy.quantize = {kind}"), set(skip)
    found, odd = 0, 0
    for module in [m for root in roots for m in root.modules()]:
        for name, layer in list(module.named_children()):
            if type(layer) is not nn.Linear or name in left:
                continue
            if layer.in_features % BLOCK:
                odd += 1
                continue
            setattr(module, name, _quantized(library, layer, kind, compute))
            found += 1
    if not found:
        raise ConfigError(f"policy.quantize = {kind}: no linear layer has a width that is a multiple of {BLOCK}.")
    if odd:
        log.warning("policy.quantize: %d linear layers stay as they are, their width is no multiple of %d", odd, BLOCK)
    return found


def mark_quantized(model: nn.Module, kind: Quantized) -> None:
    """So that peft puts an adapter on such layers as on others."""
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
    else:
        made = library.nn.Linear8bitLt(
            layer.in_features, layer.out_features, has_fp16_weights=False, threshold=0.0, **sizes
        )
        made.weight = library.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return made.to(layer.weight.device)
