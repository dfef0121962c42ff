"""Layers of 4 and 8 bits without numbers: the bytes that they hold and those that their forwards take, for counting."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights that share a scale (nf4)."""
LEVELS = 16
"""Values that 4 bits stand for: a table of them lies beside each layer (nf4)."""
FEW_ROWS = 4
"""Up to so many rows of inputs a kernel reads the packed weights as they are (nf4); beyond it they may be unpacked first."""


class QuantizedLinear(nn.Linear):
    """In the place of a frozen linear layer on the meta device; `quantized` is "nf4" or "int8".

    nf4: half a byte a weight, and a float32 scale for each block of 64; scales are not quantized once more. int8: a byte a weight, and a
    float32 scale a row. A bias stays as it is. Source: the storage of bitsandbytes, see `grpo_mm.weights.eight_bit`.
    """

    def __init__(self, layer: nn.Linear, quantized: Literal["nf4", "int8"], *, compute: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.quantized = layer.in_features, layer.out_features, quantized
        self.compute = compute
        numbers = self.in_features * self.out_features
        shape = (-(-numbers // 2), 1) if quantized == "nf4" else (self.out_features, self.in_features)
        scales = -(-numbers // BLOCK) + LEVELS if quantized == "nf4" else self.out_features
        dtype = torch.uint8 if quantized == "nf4" else torch.int8
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
        self.register_buffer("scales", torch.empty(scales, device="meta"))
        bias = None if layer.bias is None else nn.Parameter(layer.bias.data, requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in the dtype of x."""
        with torch.autocast("cpu", enabled=False):
            return _Product.apply(x.to(self.compute), self).to(x.dtype)


class _Product(torch.autograd.Function):
    """The kernels' memory where many rows go through: unpacked weights of one layer at a time, which no graph holds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return x @ _unpacked(layer).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ _unpacked(ctx.layer), None


def _unpacked(layer: QuantizedLinear) -> Tensor:
    return torch.empty(layer.out_features, layer.in_features, dtype=layer.compute, device="meta")


def layers_of(module: nn.Module) -> list[QuantizedLinear]:
    return [part for part in module.modules() if isinstance(part, QuantizedLinear)]


def count_of(module: nn.Module) -> int:
    """Weights of a network, however many share a byte."""
    packed = {id(layer.weight): layer.in_features * layer.out_features for layer in layers_of(module)}
    return sum(packed.get(id(p), p.numel()) for p in module.parameters())


def bytes_read(module: nn.Module, rows: int, *, size: int) -> int:
    """Of the weights, by a forward of few rows that computes in numbers of `size` bytes.

    Quantized layers are unpacked first: written and read in these numbers beside their own bytes, but for nf4 and up to `FEW_ROWS` rows.
    """
    layers = layers_of(module)
    packed = sum(layer.weight.nbytes + layer.scales.nbytes for layer in layers)
    numbers = sum(layer.in_features * layer.out_features for layer in layers)
    unpacked = sum(n.in_features * n.out_features for n in layers if n.quantized == "int8" or rows > FEW_ROWS)
    return (count_of(module) - numbers) * size + packed + 2 * unpacked * size


def said_of(module: nn.Module) -> tuple[str, ...]:
    """A line on what is quantized and what is not; () where nothing is."""
    layers = layers_of(module)
    if not layers:
        return ()
    numbers = sum(layer.in_features * layer.out_features for layer in layers)
    return (
        f"quantized ({layers[0].quantized}): {len(layers)} linear layers with {numbers / 1e6:.2f} M weights; embeddings, head, norms and "
        "what else there is are not; seconds are those of plain layers",
    )
