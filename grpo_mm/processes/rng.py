"""Named random streams: what is drawn for a prompt does not depend on rank, micro-batch or order."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(run_seed: int, stream: str, *key: object) -> int:
    """A 63-bit seed from the run seed, the stream's name and a key such as (step, prompt id, sample)."""
    text = "\x1f".join([str(run_seed), stream, *map(str, key)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(run_seed: int, name: str, *key: object) -> torch.Generator:
    """A CPU generator for the stream; drawn on the CPU so that the engine's device does not matter."""
    return torch.Generator().manual_seed(stream_seed(run_seed, name, *key))
