"""Words that all processes of a run have in common, whoever of them asks first: no collective, so that not all have to ask."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from grpo_mm.errors import UserError
from grpo_mm.outside import reason


def agreed(key: str, word: str) -> str:
    """The word that was proposed first under a key; a process that is alone gets its own."""
    store = _store()
    return word if store is None else store.compare_set(key, "", word).decode()


def of_the_first(key: str, made: Callable[[], str], *, seconds: float) -> str:
    """What `made` returns in the process that comes first; the others wait for it.

    Raises:
        UserError: it failed there, and why; or the others have waited for so long.
    """
    store = _store()
    if store is None:
        return made()
    if store.add(f"{key}/comers", 1) == 1:
        try:
            found = made()
        except BaseException as error:
            store.set(f"{key}/made", f"!{reason(error, 2000)}")
            raise
        store.set(f"{key}/made", f"={found}")
        return found
    try:
        store.wait([f"{key}/made"], timedelta(seconds=seconds))
    except RuntimeError:
        raise UserError(f"waited {seconds:g} seconds for another process of the run ({key})") from None
    said = store.get(f"{key}/made").decode()
    if said.startswith("!"):
        raise UserError(f"in another process of the run: {said[1:]}")
    return said[1:]


def _store() -> Any:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    from torch.distributed import distributed_c10d

    return torch.distributed.PrefixStore("agreed", distributed_c10d._get_default_store())
