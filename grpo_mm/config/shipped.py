"""Configs that ship with the package: found wherever one starts from, by the names that `grpo-mm methods` prints."""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "configs"
APART = ("accelerate",)
"""Folders there that hold no runs, but files of other programs."""

log = logging.getLogger(__name__)


def config_file(path: Path) -> Path:
    """The file that a config's name means: what lies there, else the shipped one of that name, which the log then tells.

    Example: without such a file here, "quickstart/flow.yaml", "quickstart/flow" and "configs/quickstart/flow.yaml" are the
    shipped one.
    """
    if path.is_absolute() or os.path.lexists(path):
        return path
    found = shipped_file(path)
    if found is None:
        return path
    log.info("%s: no such file here, so the one that ships with the package is taken: %s", path, found)
    return found


def shipped_file(path: Path) -> Path | None:
    """The shipped config of that name, if there is one."""
    parts = list(path.parts)
    for first in ("grpo_mm", "configs"):
        if parts[:1] == [first]:
            parts.pop(0)
    if path.is_absolute() or not parts or ".." in parts:
        return None
    try:
        candidates = [SHIPPED.joinpath(*parts), SHIPPED.joinpath(*parts[:-1], f"{parts[-1]}.yaml")]
        return next((file for file in candidates if file.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def shipped_names() -> list[str]:
    """ "quickstart/flow.yaml", …: what can be given in place of a path; runs only."""
    found = (file.relative_to(SHIPPED) for file in SHIPPED.rglob("*.yaml"))
    return sorted(str(name) for name in found if name.parts[0] not in APART)


def first_line(name: str) -> str:
    """The comment that a shipped config begins with, up to its end of line; "" where there is none."""
    with (SHIPPED / name).open(encoding="utf-8") as file:
        line = file.readline().strip()
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def near_names(path: Path) -> list[str]:
    """Shipped names that may have been meant."""
    names = shipped_names()
    same = [name for name in names if Path(name).stem == path.stem]
    return (same or difflib.get_close_matches(str(path).removeprefix("configs/"), names, n=3))[:3]
