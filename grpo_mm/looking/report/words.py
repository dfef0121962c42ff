"""Numbers as a reader wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_mm.looking.own_files import LARGEST_NUMBER, MAX_NAME, number_or_none
from grpo_mm.outside import plain, shown


def change_of(before: Any, after: Any) -> dict[str, str] | None:
    if not (finite(before) and finite(after)):
        return None
    digits = 3 if max(abs(before), abs(after)) < 100 else 1
    change = round(after - before, digits) + 0.0
    text = f"{change:+.{digits}f}".replace("-", "−")
    return {"text": text if change else text[1:], "sign": sign(change)}


def sign(x: float) -> str:
    return "up" if x > 0 else "down" if x < 0 else "same"


def finite(x: Any) -> bool:
    """Whether it is a number that can be drawn; True and False are, as 1 and 0."""
    return (type(x) is float and -LARGEST_NUMBER <= x <= LARGEST_NUMBER) or (
        isinstance(x, (int, float)) and number_or_none(float(x) if isinstance(x, bool) else x) is not None
    )


def score(x: Any) -> str:
    if not finite(x):
        return "–"
    x = round(x, 3) + 0.0  # no minus before a zero
    return (f"{x:.3f}" if abs(x) < 100 else f"{x:.1f}").replace("-", "−")


def signed(x: float) -> str:
    return f"{x:+.2f}".replace("-", "−")


def moment(seconds: float) -> str:
    """9 s, 47.5 s, 12:05, 1:02:03."""
    whole = round(seconds)
    if whole < 120:
        return f"{number(round(seconds, 1))} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def number(x: float) -> str:
    """About four digits: 0.61, 12300, 3×10⁻⁵."""
    if x == 0 or 1e-3 <= abs(x) < 1e6:
        return (f"{x:.4g}" if abs(x) < 1e3 else f"{x:.0f}").replace("-", "−")
    digits, _, exponent = f"{x:.2e}".partition("e")
    power = "10" + superscript(int(exponent))
    digits = digits.rstrip("0").rstrip(".").replace("-", "−")
    return power if digits == "1" else f"{digits}×{power}"


def superscript(exponent: int) -> str:
    """−7 as ⁻⁷."""
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def duration(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 1 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60:02d} min"


def count(x: float) -> str:
    """950, 48.2 thousand, 1.2 million."""
    if x < 1e4:
        return f"{x:.0f}"
    return f"{x / 1e3:.3g} thousand" if x < 1e6 else f"{x / 1e6:,.3g} million"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{plain(str(key), MAX_NAME)}"
        nested = isinstance(value, Mapping) and len(prefix) < MAX_NAME
        found |= flat(value, f"{name}.") if nested else {name: plain(value) if isinstance(value, str) else shown(value)}
    return found
