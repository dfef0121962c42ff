"""A ledger in words: what `show` prints of memory, seconds, hours and cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grpo_mm.ledger.cards import CONTEXT_BYTES, SHARE_OF_PEAK, SIZES, card, smallest, usable
from grpo_mm.ledger.entries import GIB, Entry, Ledger, Phase, Spread
from grpo_mm.ledger.fit import DEVICES, cheapest_fix, fewest


@dataclass(frozen=True)
class Asked:
    """What the user said of the machine."""

    gpu: str = "h100"
    devices: int = 1
    share: float = SHARE_OF_PEAK
    price: float | None = None
    """Of a GPU for an hour, in any currency."""
    sharded: bool = False
    """Whether each device keeps a part of the weights only."""
    gather: Literal["phase", "forward"] = "phase"
    """sharded: when weights are whole."""
    bench: Path | None = None
    """What `grpo-mm bench --json` printed: seconds of a step come from there."""
    measured_seconds: float | None = None
    """Of a step, where a run has been timed."""
    measured_on: str = ""


def memory_lines(ledger: Ledger, asked: Asked | None = None, *, cpu: bool = False) -> list[str]:
    """What is held all the time, what each phase adds, the peak by dtype, the smallest card and the number of larger ones.

    `ledger` is counted for the processes that `asked` says.
    """
    asked = asked or Asked()
    here = ledger.on(_spread(asked))
    on_device = [entry for entry in here.resident if entry.place == "device"]
    within = " and gathered within forwards" * (asked.gather == "forward")
    form = f", weights sharded{within}" if asked.sharded else ", each holds all weights" if asked.devices > 1 else ""
    each = "the process" if asked.devices == 1 else f"each of {asked.devices} processes{form}"
    found = [
        f"{ledger.trained / 1e6:.2f} M trained of {ledger.weights / 1e6:.2f} M weights of the network",
        f"memory of {each}, GiB, held all the time: {_list(on_device)}; sum {_gib(here.held)}",
    ]
    found += [f"  + {phase.name}: {_gib(phase.bytes)} ({_list(phase.parts)})" for phase in _by_size(here.phases)]
    dtypes = ", ".join(
        f"{name or 'activations of several dtypes'} {_gib(size)}" for name, size in here.by_dtype.items()
    )
    found.append(
        f"peak {_gib(here.peak)} GiB, during: {here.fullest.name}; by dtype: {dtypes}"
        + (f"; main memory {_gib(here.host)} GiB" if here.host else "")
    )
    if cpu:
        return [*found, *ledger.said]
    return [*found, *_card_lines(ledger, here, asked), *ledger.said]


def _spread(asked: Asked) -> Spread:
    return Spread(asked.devices, asked.sharded, asked.gather)


def _card_lines(ledger: Ledger, here: Ledger, asked: Asked) -> list[str]:
    size = smallest(here.peak)
    spare = f"{CONTEXT_BYTES / GIB:.0f} GiB for CUDA and 5 % between blocks counted in"
    below = max((s for s in SIZES if s < (size or 10**9)), default=None)
    advice = cheapest_fix(ledger, usable(below), _spread(asked)) if below else ""
    first = (
        f"no GPU of {', '.join(map(str, SIZES))} GB holds this ({spare}): {advice}"
        if size is None
        else f"smallest GPU that holds this: {size} GB ({spare})" + (f"; for {below} GB: {advice}" if below else "")
    )
    counts = [f"{number_of_cards(ledger, gib)} × {gib} GB" for gib in (24, 80, 141)]
    meaning = " (sharded: each keeps a part of the weights)" * any("sharded" in count for count in counts)
    return [first, f"fewest GPUs that hold this: {', '.join(counts)}{meaning}"]


def number_of_cards(ledger: Ledger, gib: int) -> str:
    """ "1", "8 (sharded)", "8 (sharded, gather=forward)", "none up to 128"."""
    spread = fewest(ledger, usable(gib))
    if spread is None:
        return f"none up to {DEVICES[-1]}"
    form = "sharded" + ", gather=forward" * (spread.gather == "forward")
    return f"{spread.devices}{f' ({form})' * spread.sharded}"


def time_lines(ledger: Ledger, asked: Asked, *, steps: int) -> list[str]:
    """Seconds of a step, hours of the run, and what they cost if a price is given."""
    if asked.measured_seconds is not None:
        seconds, how = asked.measured_seconds, f"measured: {asked.measured_on}"
    else:
        seconds, how = seconds_of_a_step(ledger, asked)
    hours = seconds * steps / 3600
    words = f"{asked.devices} × {asked.gpu}: {seconds:.3g} s a step ({how}); {steps} steps = {hours:.3g} h"
    if asked.price is not None:
        words += (
            f", {hours * asked.devices:.3g} GPU hours at {asked.price:g} = {hours * asked.devices * asked.price:.4g}"
        )
    if asked.measured_seconds is None:
        words += "; rewards, evaluation, decoding of media and logging come on top"
    return [words]


def seconds_of_a_step(ledger: Ledger, asked: Asked) -> tuple[float, str]:
    """From operations at a share of the card's peak, and from what drawing a token must read."""
    gpu = card(asked.gpu)
    peak = (gpu.bf16_tflops if ledger.low_precision else gpu.fp32_tflops) * 1e12
    total = sum(ledger.flops.values())
    seconds = total / (peak * asked.share)
    kind = "bfloat16" if ledger.low_precision else "float32"
    how = f"{total / 1e12:.3g} TFLOP at {asked.share:.0%} of {peak / 1e12:g} TFLOP/s in {kind}"
    if ledger.token_steps:
        each = max(ledger.token_seconds, ledger.token_bytes / (gpu.tb_per_second * 1e12))
        seconds += ledger.token_steps * each
        how += f", and {ledger.token_steps:g} token steps of {1000 * each:.0f} ms where every answer is at its longest"
    return seconds, how


def _by_size(phases: tuple[Phase, ...]) -> list[Phase]:
    return sorted((phase for phase in phases if phase.bytes), key=lambda phase: -phase.bytes)


def _list(entries: tuple[Entry, ...] | list[Entry]) -> str:
    return ", ".join(
        f"{e.owner}{f' [{e.dtype}]' if e.dtype else ''} {_gib(e.bytes)}" + " in main memory" * (e.place == "host")
        for e in entries if e.bytes
    )  # fmt: skip


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= 0.01 * GIB or not size else f"{size / GIB:.4f}"
