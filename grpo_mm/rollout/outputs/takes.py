"""What a reward takes, as far as it is known before it is asked: texts, pictures, clips; and the picture of a prompt.

A reward says it as `takes` (one word, or several), a room of rewards for all of its own as `TAKES`, a function of the user by the
names of its arguments. A reward that looks at the picture of a prompt, as those of editing do, says `needs_source = True`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import shown
from grpo_mm.rollout.outputs.frames import read_frames
from grpo_mm.types import Clips, is_pictures

MADE = ("texts", "pictures", "clips")
OF_ARGUMENTS = {"images": "pictures", "clips": "clips", "texts": "texts", "completions": "texts"}
"""The argument of a user's function → what it takes."""


def takes_of(reward: Any) -> frozenset[str]:
    """Of MADE; empty: it is not known, as of a reward that somebody else computes."""
    while isinstance(reward, partial):  # a function behind the signature of a reward
        bound = reward.args
        reward = bound[0] if bound else reward.func
    said = getattr(reward, "takes", None)
    if said is None:
        said = getattr(_call_of(reward), "takes", None)
    if said is None:
        room = sys.modules.get(str(getattr(type(reward), "__module__", "")).rpartition(".")[0])
        said = (
            getattr(room, "TAKES", None) if str(getattr(room, "__name__", "")).startswith("grpo_mm.rewards.") else None
        )
    if said is None:
        said = _of_function(reward)
    words = (said,) if isinstance(said, str) else tuple(said) if isinstance(said, (tuple, list, set, frozenset)) else ()
    return frozenset(word for word in words if word in MADE)


def _call_of(reward: Any) -> Any:
    return next((vars(kind)["__call__"] for kind in type(reward).__mro__ if "__call__" in vars(kind)), None)


def _of_function(reward: Any) -> tuple[str, ...]:
    try:
        function = reward.users_function if hasattr(reward, "users_function") else reward
        needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    except Exception:  # it cannot be imported, which is told where it is checked, or has no signature
        return ()
    found = {OF_ARGUMENTS[name] for name in needed if name in OF_ARGUMENTS}
    return ("texts",) if {"texts", "pictures"} <= found else tuple(found)  # a policy that writes about pictures


def kind_of(items: Any) -> str:
    """Of outputs."""
    return "clips" if isinstance(items, Clips) else "pictures" if is_pictures(items) else "texts"


def check_takes(entries: Mapping[str, Any], made: str | None, *, place: str) -> None:
    """Of entries of `rewards` or `watch`.

    Args:
        made: what the policy makes, one of MADE; None: it does not say.

    Raises:
        ConfigError: `frames` that cannot be read, or for a reward that takes clips whole or reads texts; outputs that a reward does
            not take.
    """
    for name, entry in entries.items():
        where = f"{place}.{name}"
        frames = read_frames(getattr(entry, "frames", None), where=where)
        takes = takes_of(entry.use)
        if frames is not None and takes and "pictures" not in takes:
            raise ConfigError(
                f"{where}.frames is for a reward of pictures; {_named(entry.use)} takes {_words(takes)}. Leave it out."
            )
        if frames is not None and made not in (None, "clips"):
            raise ConfigError(f"{where}.frames is for clips, and the policy makes {made}. Leave it out.")
        if made is not None and frames is None and takes and made not in takes:
            raise ConfigError(_refusal(where, entry.use, takes, made))


def check_items(name: str, entry: Any, items: Any) -> None:
    """Raises UserError for outputs that a reward does not take, where only the outputs tell."""
    made, takes = kind_of(items), takes_of(entry.use)
    if made == "clips" and getattr(entry, "frames", None) is None and takes and "clips" not in takes:
        raise UserError(_refusal(name, entry.use, takes, made))


def _refusal(where: str, reward: Any, takes: frozenset[str], made: str) -> str:
    if made == "clips" and "pictures" in takes:
        return (
            f"{where}: {_named(reward)} scores pictures, and what is made are clips. Say how frames become one score: "
            f"{where}.frames=mean, or min."
        )
    return f"{where}: {_named(reward)} takes {_words(takes)}, and what is made are {made}. Use another reward."


def _words(takes: frozenset[str]) -> str:
    return " or ".join(word for word in MADE if word in takes)


def _named(reward: Any) -> str:
    while isinstance(reward, partial):
        reward = reward.args[0] if reward.args else reward.func
    return shown(getattr(reward, "path", None) or getattr(reward, "__name__", None) or type(reward).__name__, 80)
