"""What a config or a caller names as a reward, in the form in which it is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.outside import plain, shown
from grpo_mm.rollout.function_reward import call_function
from grpo_mm.rollout.reward_arguments import OUTPUTS, needed_names
from grpo_mm.types import Prompt, is_relative


def as_reward(use: Any) -> Any:
    """A user's plain function, which gets its arguments by name, behind the signature of a reward; so is what wraps one (a partial,
    a cache), and an object whose call asks for such arguments."""
    return partial(call_function, use) if is_function(use) else use


def is_function(use: Any) -> bool:
    """Whether it is called as a user's function, see `reward_arguments`. An object of two arguments is a reward, unless it asks
    for a column: `(texts, answer)`."""
    inner = use
    while isinstance(inner, partial):
        inner = inner.func
    if inner is call_function or inner is _with_groups:  # a reward already
        return False
    if inspect.isroutine(inner) or inspect.isroutine(getattr(inner, "__wrapped__", None)):
        return True
    if is_relative(use):
        return False
    required = needed_names(use)
    by_name = bool({*required} & {*OUTPUTS}) and {*required} - {*OUTPUTS} != {"prompts"}
    return by_name or (_takes(use, 3) is True and _takes(use, 2) is False)


def check_call(name: str, use: Any) -> None:
    """Raises ConfigError for a reward that cannot be called as rewards are."""
    if not callable(use) or inspect.isclass(use):
        raise ConfigError(
            f"reward {shown(name)} is {shown(use)}; wanted a function, such as (images, prompts), or a reward object."
        )
    if not is_function(use) and _takes(use, 3 if is_relative(use) else 2) is False:
        asked = (
            "(items, prompts, group)"
            if is_relative(use)
            else "(items, prompts), or the names of a function's arguments"
        )
        raise ConfigError(
            f"reward {shown(name)} cannot be called with {asked}: its signature is {plain(str(inspect.signature(use)), 200)}."
        )


def _takes(use: Any, number: int) -> bool | None:
    """Whether so many positional arguments are enough and not too many; None where that cannot be known, as of code in C."""
    try:
        inspect.signature(use).bind(*range(number))
    except TypeError as error:
        return None if "not a callable" in str(error) or "not supported" in str(error) else False
    except Exception:  # no signature; a foreign class may raise anything
        return None
    return True


def in_sets(reward: Any, group_U: Tensor) -> Any:
    """A reward over sets with its third argument."""
    return partial(_with_groups, reward, group_U)


def _with_groups(reward: Any, group_U: Tensor, items: Any, prompts: Sequence[Prompt]) -> Any:
    return reward(items, prompts, group_U.clone())


def needs_device(reward: Any) -> bool:
    """Whether a network of it is on the device that it is moved to. One that asks somebody elsewhere, or hands `to` on to a part that may,
    has `to` as well and says so itself (`needs_device`)."""
    said = getattr(reward, "needs_device", None)
    return hasattr(reward, "to") if said is None else bool(said)


def move(reward: Any, device: torch.device) -> None:
    """A network goes to the device; other rewards have nothing to move."""
    if hasattr(reward, "to"):
        reward.to(device)


def shares_calls(reward: Any) -> bool:
    """Whether outputs of several prompts may be one call of it, with the very scores of calls apart and sooner: whoever it asks is a server
    (`shares_calls = True` of a reward, or of a part of it such as its judge)."""
    said = getattr(reward, "shares_calls", None)
    return any(map(shares_calls, _inner(reward))) if said is None else bool(said)


def limit_of_a_call(reward: Any) -> str | None:
    """The setting of a reward, or of a part of it, by which it asks only so much in one call; None: there is none."""
    said = getattr(reward, "limit_of_a_call", None)
    return said or next(filter(None, map(limit_of_a_call, _inner(reward))), None)


def _inner(reward: Any) -> Iterator[Any]:
    """What its fields hold of the package's kind: settings with methods."""
    if is_dataclass(reward) and not isinstance(reward, type):
        yield from (value for field in fields(reward) if is_dataclass(value := getattr(reward, field.name, None)))
