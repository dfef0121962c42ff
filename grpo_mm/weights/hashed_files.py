"""Tensors to a safetensors file and its hash in one pass: a file of a hundred gigabytes is not read again to be hashed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

PIECE = 2**24
"""Bytes that are hashed and written at once."""
NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32",
    torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
"""Of the format, in the order in which the library lays tensors down: from the last to the first, so that each is aligned."""


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> str:
    """Writes the bytes that `safetensors.torch.save_file` writes, to the disk itself; their SHA-256, in hexadecimal.

    Args:
        tensors: on the CPU, contiguous.

    Raises:
        OSError: the disk is full, or the like.
        TypeError: a dtype that the format has no name for.
    """
    rank = {dtype: place for place, dtype in enumerate(NAMES)}
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise TypeError(f"{name} is {tensor.dtype}, which safetensors has no name for")
    order = sorted(tensors, key=lambda name: (-rank[tensors[name].dtype], name.encode()))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name in order:
            raw = memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy())
            for at in range(0, len(raw), PIECE):
                digest.update(raw[at : at + PIECE])
                file.write(raw[at : at + PIECE])
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
