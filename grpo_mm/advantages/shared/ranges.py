"""Ranges of settings, with the sentence that names what was found."""

from __future__ import annotations


def not_below_zero(**settings: float) -> None:
    """Raises ValueError with the settings that are below 0."""
    low = [f"{name} = {value:g}" for name, value in settings.items() if value < 0]
    if low:
        raise ValueError(f"{', '.join(low)}; wanted 0 or more.")
