"""Does it fit, on how many devices, and what is the cheapest change that makes it fit."""

from __future__ import annotations

from dataclasses import replace

from grpo_mm.ledger.entries import GIB, Ledger, Phase, Spread

MARGIN = 0.1
"""By which a forecast may be off: a run is refused beyond it, warned of within it."""
DEVICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def fewest(ledger: Ledger, free: int) -> Spread | None:
    """The smallest number of devices with so many free bytes that hold it, each holding everything before sharded; with weights
    that come and go within forwards, which takes more time, only where not even 128 hold them otherwise.

    None: nor so. See `cards.usable` for what a card has free.
    """
    for gather in ("phase", "forward")[: 1 + (ledger.comes_and_goes and ledger.can_shard)]:
        for devices in DEVICES:
            for sharded in (False, True)[gather == "forward" : 1 + (devices > 1 and ledger.can_shard)]:
                spread = Spread(devices, sharded, gather)
                if ledger.on(spread).peak <= free:
                    return spread
    return None


def refusal(ledger: Ledger, free: int, *, spread: Spread | None = None) -> str | None:
    """Why a run cannot fit into `free` bytes of each device, and the cheapest change; None where it may.

    Args:
        ledger: counted for the processes of the run.
        spread: over how many devices; None: replicated over those that it was counted for.
    """
    spread = spread or Spread(ledger.devices)
    here = ledger.on(spread)
    if here.peak <= free * (1 + MARGIN):
        return None
    return (
        f"this run needs about {here.peak / GIB:.1f} GiB of each device (forecast to within {MARGIN:.0%}) and {free / GIB:.1f} GiB "
        f"are free: {here.held / GIB:.1f} GiB are held all the time, {here.fullest.bytes / GIB:.1f} more during: {here.fullest.name}. "
        f"{cheapest_fix(ledger, free, spread)} `grpo-mm show` prints every owner; preflight=false starts it all the same."
    )


def close(ledger: Ledger, free: int) -> str | None:
    """A warning where the forecast is so near to what is free that it may not fit."""
    if ledger.peak <= free * (1 - MARGIN):
        return None
    return f"the forecast of {ledger.peak / GIB:.1f} GiB is near to the {free / GIB:.1f} GiB that are free on the device: it may not fit."


def cheapest_fix(ledger: Ledger, free: int, spread: Spread) -> str:
    """A sentence: encoders in main memory; smaller forwards, with the values that fit; else what else there is, cheapest first.

    The first two, and more devices, change no number of a run.
    """
    here = ledger.on(spread)
    encoders = sum(e.bytes for e in here.resident if e.owner == "text encoders" and e.place == "device")
    held = here.held - encoders
    bytes_of = {phase: phase.bytes + encoders * (phase.name == ENCODING) for phase in here.phases}
    over = [phase for phase in here.phases if held + bytes_of[phase] > free]
    offload = ["policy.offload=[encoders]"] if encoders else []
    if not over:
        return f"Set {offload[0]}: {encoders / GIB:.1f} GiB less."
    if (smaller := _smaller(over, free - held)) is not None:
        return f"Set {' '.join([*offload, *smaller])}."
    worst = max(over, key=lambda phase: phase.bytes)
    ways = []
    if worst.lower and held + worst.bytes - worst.proportional <= free:
        ways.append(" and ".join([*offload, f"less for {worst.name} ({worst.lower})"]))
    if (
        spread.devices > 1
        and ledger.comes_and_goes
        and ledger.on(replace(spread, sharded=True, gather="forward")).peak <= free
    ):
        ways.append("on these devices distributed.kind=sharded with distributed.gather=forward holds it")
    if (found := fewest(ledger, free)) is not None:
        form = " with distributed.kind=sharded" * found.sharded + " distributed.gather=forward" * (
            found.gather == "forward"
        )
        ways.append(f"{found.devices} such devices hold it{form}")
    if sum(e.bytes for e in here.resident if e.owner.startswith(STATE)) > here.peak / 3:
        ways.append("train an adapter (policy.lora={rank: 32})")
    said = "; or ".join(ways) or "no change of one setting makes it fit"
    return f"{said[0].upper()}{said[1:]}."


STATE = ("moments", "averaged", "sampling weights", "reference")
ENCODING = "encoding prompts"


def _smaller(over: list[Phase], room: int) -> list[str] | None:
    """KEY=VALUE with the largest values at which each of these phases needs no more than `room`; None if there are none."""
    values: dict[str, int] = {}
    for phase in over:
        if phase.setting is None or not phase.proportional:
            return None
        key, value = phase.setting
        fits = (room - (phase.bytes - phase.proportional)) * value // phase.proportional
        if not 1 <= fits < value:
            return None
        values[key] = min(fits, values.get(key, fits))
    return [f"{key}={value}" for key, value in values.items()]
