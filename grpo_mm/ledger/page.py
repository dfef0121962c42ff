"""The table of docs/memory.md: what each shipped config holds, on which cards, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_mm.ledger.cards import CONTEXT_BYTES, FRAGMENTED, SHARE_OF_PEAK, SIZES, smallest, usable
from grpo_mm.ledger.entries import GIB, Entry, Ledger, Spread
from grpo_mm.ledger.fit import DEVICES, fewest
from grpo_mm.ledger.words import Asked, seconds_of_a_step

OWNERS = {
    "weights": ("weights", "transformer", "gathered"), "gradients": ("gradients",), "moments": ("moments",),
    "reference, averages": ("reference", "averaged", "sampling weights", "present"), "copies": ("compute copies", "root"),
    "activations": ("activations",), "keys": ("keys",), "step": ("contexts", "latents", "velocities", "visual", "pixels", "pictures"),
    "encoders, decoder": ("text encoders", "decoder"), "rewards": ("reward network",),
}  # fmt: skip
"""Columns: how the owners in each begin. What begins with "reward" is looked at before "reference"."""
HEAD = [
    "# Memory", "",
    "Made by `python docs/scripts/memory.py`, which counts each config as `grpo-mm show` does: bytes and operations of the real classes",
    "on the meta device, nothing loaded. GiB of one process at its peak, by owner; where no card holds that, of each process on the fewest",
    "141 GB cards with sharded weights (marked *s*). Data are not read: a clip is taken to last 60 s, a question 256 tokens, every",
    "answer its longest (`show` says it for each config).", "",
    f"- A card must hold the peak with {FRAGMENTED - 1:.0%} between blocks and {CONTEXT_BYTES / GIB:.0f} GiB for CUDA. *Smallest*: the smallest single card of {', '.join(map(str, SIZES))} GB.",
    "- *Fewest*: each card holds everything, or, marked *s*, a part of weights, moments and copies, and in each phase all weights gathered",
    "  in the dtype of the forwards, gradients whole in float32; where not even 128 hold that, marked *f*, weights that are gathered within",
    "  forwards (`distributed.gather=forward`). Sharded counts follow that model; they were not measured on GPUs.",
    f"- *s a step*: of the fewest 80 GB cards (else 141 GB), as H100s (H200s), at {SHARE_OF_PEAK:.0%} of their dense peak (bfloat16, or float32 where a",
    "  config trains in it), tokens drawn at the time that starting their kernels takes; without rewards, decoding of media, communication;",
    "  one card's seconds divided by the cards, which is too little where answers are drawn in fewer than one batch a card.",
    "- Answers that are drawn at once (`engine.generator.batch`) are counted as one card has them: with many cards, too many.",
    "- *copies*: weights that autocast casts, and AdamW's root of the second moment where the optimiser's step is the peak.", "",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One config."""

    name: str
    ledger: Ledger
    seconds: dict[int, tuple[Spread, float]]
    """By GB of a card: the fewest of them, and their seconds a step; sizes that cannot hold it are left out."""

    @property
    def spread(self) -> Spread:
        if smallest(self.ledger.on(Spread()).peak) is not None or 141 not in self.seconds:
            return Spread()
        return self.seconds[141][0]

    def cells(self) -> list[str]:
        here = self.ledger.on(self.spread)
        single = smallest(self.ledger.on(Spread()).peak)
        size = next((gib for gib in (80, 141) if gib in self.seconds), None)
        seconds = "" if size is None else f"{self.seconds[size][1]:.3g}"
        return [
            self.name, f"{self.ledger.trained / 1e6:,.0f} of {self.ledger.weights / 1e6:,.0f}", f"{single} GB" if single else "none",
            *(self._fewest(gib) for gib in (80, 141)), f"{here.peak / GIB:.1f}{mark_of(self.spread)}",
            *(_gib(size) for size in by_owner(here).values()), seconds,
        ]  # fmt: skip

    def _fewest(self, gib: int) -> str:
        if gib not in self.seconds:
            return f"> {DEVICES[-1]}"
        spread = self.seconds[gib][0]
        return f"{spread.devices}{mark_of(spread)}"


def mark_of(spread: Spread) -> str:
    if not spread.sharded:
        return ""
    return " f" if spread.gather == "forward" else " s"


def by_owner(ledger: Ledger) -> dict[str, int]:
    """Bytes on the device at the peak of a ledger whose form is chosen, for each of `OWNERS`; no byte is left out."""
    found = dict.fromkeys(OWNERS, 0)
    for entry in (*ledger.resident, *ledger.fullest.parts):
        if entry.place == "device":
            found[_column(entry)] += entry.bytes
    return found


def _column(entry: Entry) -> str:
    return next(name for name in reversed(OWNERS) if entry.owner.startswith(OWNERS[name]))


def row(name: str, ledger: Ledger) -> Row:
    """`ledger`: of one process that has all prompts of a step."""
    seconds = {}
    for gib, gpu in ((80, "h100"), (141, "h200")):
        spread = fewest(ledger, usable(gib))
        if spread is not None:
            seconds[gib] = spread, seconds_of_a_step(ledger, Asked(gpu))[0] / spread.devices
    return Row(name, ledger, seconds)


def table_head() -> list[str]:
    columns = ["config", "M trained", "smallest", "fewest 80 GB", "fewest 141 GB", "peak", *OWNERS, "s a step"]
    return [line_of(columns), "| --- " * len(columns) + "|"]


def line_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _gib(size: int) -> str:
    if not size:
        return ""
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else "<.1"
