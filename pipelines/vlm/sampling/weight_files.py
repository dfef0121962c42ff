"""The weights in place as files that an engine in another process reads: safetensors in pieces, so that no more than one is held twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES = 2**28
"""Of a file, unless one weight is larger."""


def base_pieces(source: Any, *, dtype: torch.dtype | None = None) -> Iterator[tuple[str, bytes]]:
    """(name of a file, its content) of the model without its adapter.

    Args:
        source: an `InPlace`.
        dtype: what the engine computes in; weights of another floating type are rounded to it here as they would be there.
    """
    from safetensors.torch import save

    for number, piece in enumerate(_pieces(source.base(), dtype)):
        yield f"base-{number:05d}.safetensors", save(piece)


def write_base(source: Any, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """The same as files of a folder."""
    for name, content in base_pieces(source, dtype=dtype):
        (folder / name).write_bytes(content)


def _pieces(weights: Iterator[tuple[str, Tensor]], dtype: torch.dtype | None) -> Iterator[dict[str, Tensor]]:
    piece: dict[str, Tensor] = {}
    size = 0
    for name, value in weights:
        kept = value.to("cpu", dtype if value.is_floating_point() else None, copy=True).contiguous()
        if piece and size + kept.nbytes > PIECE_BYTES:
            yield piece
            piece, size = {}, 0
        piece[name], size = kept, size + kept.nbytes
    if piece:
        yield piece
