"""Folders that a command writes its results into: numbered within the run, or new at a place that is named."""

from __future__ import annotations

import os
from pathlib import Path

from grpo_mm.errors import ConfigError


def numbered_folder(parent: Path) -> Path:
    """Makes `parent`/001, or the next number after those that are there; several processes get one each.

    Raises:
        ConfigError: it cannot be made, or `parent` is a link.
    """
    if parent.is_symlink():
        raise ConfigError(f"{parent} is a link to {os.readlink(parent)}, which is not written through. Give --out.")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = max((int(name) for name in os.listdir(parent) if name.isdecimal()), default=0)
        while True:
            number += 1
            try:
                (parent / f"{number:03d}").mkdir()
                return parent / f"{number:03d}"
            except FileExistsError:
                continue
    except OSError as error:
        raise ConfigError(f"nothing can be written to {parent}: {error}. Give --out.") from error


def new_folder(path: Path) -> Path:
    """Makes a folder that is not there yet, or takes an empty one.

    Raises:
        ConfigError: there is something in it already, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError(f"{path} holds files already, and nothing is overwritten. Give another --out.")
    except OSError as error:
        raise ConfigError(f"nothing can be written to {path}: {error}. Give another --out.") from error
    return path
