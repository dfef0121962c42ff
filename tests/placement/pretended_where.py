"""Where in this repository something was asked for."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2].resolve()
ROOMS = ("grpo_mm", "pipelines", "rewards", "datasets")


def place() -> str:
    """ "file:function" of the innermost frame in the package, the file relative to the root; "elsewhere" if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = _file(frame.f_code.co_filename)
        if name is not None:
            return f"{name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@cache
def _file(name: str) -> str | None:
    path = Path(name).resolve()  # the package is also found under links
    return str(path.relative_to(ROOT)) if any(path.is_relative_to(ROOT / room) for room in ROOMS) else None
