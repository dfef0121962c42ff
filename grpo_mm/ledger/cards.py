"""GPUs: how much they hold, how fast they can be at most."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_mm.errors import UserError
from grpo_mm.outside import shown


@dataclass(frozen=True)
class Card:
    """From the makers' data sheets: dense products, without sparsity."""

    gib: float
    bf16_tflops: float
    fp32_tflops: float
    """Without TF32, which torch leaves off."""
    tb_per_second: float


CARDS = {
    "rtx3090": Card(24, 71, 35.6, 0.94), "rtx4090": Card(24, 165, 82.6, 1.01), "l4": Card(24, 121, 30.3, 0.30),
    "rtx5090": Card(32, 210, 105, 1.79), "a100-40": Card(40, 312, 19.5, 1.56), "l40s": Card(48, 362, 91.6, 0.86),
    "a100": Card(80, 312, 19.5, 2.04), "h100": Card(80, 989, 67, 3.35), "h200": Card(141, 989, 67, 4.8),
}  # fmt: skip
SIZES = (24, 40, 48, 80, 141)
SHARE_OF_PEAK = 0.4
"""Of a GPU's peak that whole forwards and backwards reach; stated wherever seconds follow from it."""
CONTEXT_BYTES, FRAGMENTED = 2**30, 1.05
"""What a CUDA context takes, and what is lost between blocks."""


def card(name: str) -> Card:
    """Raises UserError for a name that is not in the table."""
    found = CARDS.get(name.lower())
    if found is None:
        raise UserError(f"--gpu {shown(name)}: wanted one of {', '.join(CARDS)}.")
    return found


def needed(peak_bytes: int) -> float:
    """GB that a card must have: makers count a card's memory in GiB or a little less, so 3 % stay free."""
    return (peak_bytes * FRAGMENTED + CONTEXT_BYTES) / 2**30 / 0.97


def usable(gib: float) -> int:
    """Bytes of a run that a card of so many GB holds: what `needed` asks for, the other way round."""
    return int((gib * 0.97 * 2**30 - CONTEXT_BYTES) / FRAGMENTED)


def smallest(peak_bytes: int) -> int | None:
    """The smallest usual size that holds it; None if none does."""
    return next((size for size in SIZES if needed(peak_bytes) <= size), None)
