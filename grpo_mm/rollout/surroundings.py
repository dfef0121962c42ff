"""What rewards share with the process: the working folder, and the type of numbers that torch makes by default."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

log = logging.getLogger(__name__)
_told: set[str] = set()


@contextmanager
def put_back_after(what: str) -> Iterator[None]:
    """Undoes a change of either, which `what` made while it ran, and tells it once."""
    folder, dtype = _working_folder(), torch.get_default_dtype()
    try:
        yield
    finally:
        changed = []
        if folder is not None and _working_folder() != folder:
            os.chdir(folder)
            changed.append("the working folder")
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
            changed.append("torch's default dtype")
        if changed and what not in _told:
            _told.add(what)
            log.warning("%s changed %s, which is undone after each call", what, " and ".join(changed))


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return None
