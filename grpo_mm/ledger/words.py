"""A ledger in words: what `show` prints of memory, seconds, hours and cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grpo_mm.ledger.cards import CONTEXT_BYTES, SHARE_OF_PEAK, card, smallest
from grpo_mm.ledger.entries import GIB, Entry, Ledger, Phase


@dataclass(frozen=True)
class Asked:
    """What the user said of the machine."""

    gpu: str = "h100"
    devices: int = 1
    share: float = SHARE_OF_PEAK
    price: float | None = None
    """Of a GPU for an hour, in any currency."""
    bench: Path | None = None
    """What `grpo-mm bench --json` printed: seconds of a step come from there."""
    measured_seconds: float | None = None
    """Of a step, where a run has been timed."""
    measured_on: str = ""


def memory_lines(ledger: Ledger, *, cpu: bool = False) -> list[str]:
    """What is held all the time, what each phase adds, the peak, and the smallest card."""
    on_device = [entry for entry in ledger.resident if entry.place == "device"]
    found = [
        f"{ledger.trained / 1e6:.2f} M trained of {ledger.weights / 1e6:.2f} M weights of the network",
        f"memory per process, GiB, held all the time: {_list(on_device)}; sum {_gib(ledger.on_each())}",
    ]
    found += [f"  + {phase.name}: {_gib(phase.bytes)} ({_list(phase.parts)})" for phase in _by_size(ledger.phases)]
    fullest = ledger.fullest
    found.append(
        f"peak {_gib(ledger.peak)} GiB, during: {fullest.name}"
        + (f"; main memory {_gib(ledger.host)} GiB" if ledger.host else "")
    )
    if cpu:
        return [*found, *ledger.said]
    size = smallest(ledger.peak)
    spare = f"{CONTEXT_BYTES / GIB:.0f} GiB for CUDA and 5 % between blocks counted in"
    if size is None:
        found.append(f"no GPU of 24, 40, 48, 80 or 141 GiB holds this ({spare}): {_advice(ledger)}")
    else:
        found.append(
            f"smallest GPU that holds this: {size} GiB ({spare})"
            + (f"; for a smaller one: {_advice(ledger)}" if size > 24 else "")
        )
    return [*found, *ledger.said]


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


def _advice(ledger: Ledger) -> str:
    """What to change: the fullest phase, and what is trained where that is most of it."""
    state = sum(e.bytes for e in ledger.resident if e.owner.startswith(("AdamW", "averaged", "sampling", "reference")))
    if state > ledger.peak / 3:
        return f"{_gib(state)} GiB are optimiser and copies of the weights: train an adapter (policy.lora={{rank: 32}})"
    encoders = next((e.bytes for e in ledger.resident if e.owner == "text encoders" and e.place == "device"), 0)
    if encoders > ledger.fullest.bytes:
        return f"{_gib(encoders)} GiB are text encoders: policy.offload=[encoders]"
    return f"{ledger.fullest.name} takes {_gib(ledger.fullest.bytes)} GiB: {ledger.fullest.lower}"


def _by_size(phases: tuple[Phase, ...]) -> list[Phase]:
    return sorted((phase for phase in phases if phase.bytes), key=lambda phase: -phase.bytes)


def _list(entries: tuple[Entry, ...] | list[Entry]) -> str:
    return ", ".join(
        f"{e.owner}{f' [{e.dtype}]' if e.dtype else ''} {_gib(e.bytes)}" + " in main memory" * (e.place == "host")
        for e in entries if e.bytes
    )  # fmt: skip


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= 0.01 * GIB or not size else f"{size / GIB:.4f}"
