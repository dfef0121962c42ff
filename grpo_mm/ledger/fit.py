"""Does it fit, on how many devices, and what is the cheapest change that makes it fit."""

from __future__ import annotations

from grpo_mm.ledger.entries import GIB, Ledger, Phase, Spread

MARGIN = 0.1
"""By which a forecast may be off: a run is refused beyond it, warned of within it."""
DEVICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def fewest(ledger: Ledger, free: int) -> Spread | None:
    """The smallest number of devices with so many free bytes that hold it, each holding everything before sharded.

    None: not even 128. See `cards.usable` for what a card has free.
    """
    for devices in DEVICES:
        for sharded in (False, True)[: 1 + (devices > 1)]:
            spread = Spread(devices, sharded)
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
    """In the order of what it costs: encoders in main memory, smaller forwards, recomputing, more devices, an adapter.

    The first two change no number of a run, nor do more devices.
    """
    here = ledger.on(spread)
    encoders = _encoders(here)
    if encoders and here.peak - encoders <= free and here.fullest.name != "encoding prompts":
        return f"Set policy.offload=[encoders]: {encoders / GIB:.1f} GiB less."
    offload = ["policy.offload=[encoders]"] if encoders else []
    held = here.held - encoders
    over = [phase for phase in here.phases if held + phase.bytes > free]
    smaller = [_smaller(phase, free - held) for phase in over]
    if smaller and all(smaller):
        return f"Set {' '.join([*offload, *(word for word in smaller if word)])}."
    devices = fewest(ledger, free)
    many = f"{devices.devices} such devices hold it{' with sharded weights' * devices.sharded}" if devices else ""
    lower = " ".join(
        [*offload, *([f"and make {over[0].name} smaller: {over[0].lower}"] if over and over[0].lower else [])]
    )
    state = sum(e.bytes for e in here.resident if e.split == "weights" or e.owner.startswith(STATE))
    if state > here.peak / 3:
        adapter = "train an adapter (policy.lora={rank: 32})"
        return f"{many[:1].upper() + many[1:] + ', or ' if many else ''}{adapter if many else adapter.capitalize()}."
    return f"Set {lower}" + (f", or: {many}." if many else ".")


STATE = ("moments", "averaged", "sampling weights", "reference")


def _encoders(ledger: Ledger) -> int:
    return sum(e.bytes for e in ledger.resident if e.owner == "text encoders" and e.place == "device")


def _smaller(phase: Phase, room: int) -> str | None:
    """The setting at the largest value with which the phase needs no more than `room`."""
    if phase.setting is None:
        return None
    key, value = phase.setting
    rest = phase.bytes - phase.proportional
    least = phase.proportional / value
    fits = int((room - rest) / least) if least else 0
    return f"{key}={fits}" if 1 <= fits < value else None
