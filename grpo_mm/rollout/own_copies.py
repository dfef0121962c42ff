"""What a reward is handed is its own: it may change it without changing what others see."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from grpo_mm.outside import reason
from grpo_mm.types import Clip, Clips, Pictures, Prompt

log = logging.getLogger(__name__)

LARGE_BYTES = 16 * 2**20
"""An array of at least so many is lent read-only instead of copied."""
_UNCHANGEABLE = frozenset({str, bytes, int, float, bool, complex, type(None), torch.dtype, torch.device})
_told: set[str] = set()


def is_own(reward: Any) -> bool:
    """Whether a reward and all that it is made of are of this package, whose rewards change nothing that they are handed."""
    if isinstance(reward, partial):
        return all(is_own(part) for part in (reward.func, *reward.args, *reward.keywords.values()))
    if type(reward) in _UNCHANGEABLE or isinstance(reward, Tensor):
        return True
    routine = inspect.isroutine(reward)
    module = getattr(reward if routine else type(reward), "__module__", None)
    if str(module).partition(".")[0] != "grpo_mm" or getattr(reward, "is_users", False):
        return False
    return routine or all(is_own(part) for part in getattr(reward, "__dict__", {}).values())


def own_items(items: Any) -> Any:
    """A copy of uint8 pictures [M, 3, H, W], or of a list of M outputs, of the same kind."""
    if isinstance(items, Tensor):
        return items.clone()
    kind = type(items) if isinstance(items, Pictures | Clips) else list
    return kind(_own_item(item) for item in items)


def _own_item(item: Any) -> Any:
    return replace(item, frames_FCHW=item.frames_FCHW.clone()) if isinstance(item, Clip) else own_copy(item)


def own_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """A deep copy of each, so that two rows share nothing that can be changed.

    What cannot be copied (a lock, an open file) is handed out as it is, which is told once for each class.
    """
    return [own_prompt(prompt) for prompt in prompts]


def own_prompt(prompt: Prompt) -> Prompt:
    """One deep copy."""
    media, messages, target, demo = own_copy((prompt.media, prompt.messages, prompt.target, prompt.demo))
    return replace(prompt, media=media, messages=messages, target=target, demo=demo)


def own_copy(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy. What stands twice within `value` is copied once, a value that holds itself included."""
    kind = type(value)
    if kind in _UNCHANGEABLE:
        return value
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    copy: Any
    if kind is dict:
        copy = memo[id(value)] = {}
        for name, part in value.items():
            copy[name] = own_copy(part, memo)
    elif kind is list:
        copy = memo[id(value)] = []
        copy.extend(own_copy(part, memo) for part in value)
    elif kind is tuple:
        copy = tuple([own_copy(part, memo) for part in value])
    else:
        copy = memo[id(value)] = _of_a_class(value, memo)
    return copy


def _of_a_class(value: Any, memo: dict[int, Any]) -> Any:
    if getattr(value, "nbytes", 0) >= LARGE_BYTES and hasattr(value, "setflags"):
        lent = value.view()
        lent.setflags(write=False)
        return lent
    if isinstance(value, Tensor):
        return value.detach().clone()
    if _is_frozen(value):
        return value
    if type(value) is Image.Image:  # half the time of a deep copy
        return value.copy()
    try:
        return deepcopy(value, memo)
    except Exception as error:  # whatever a foreign class raises
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if name not in _told:
            _told.add(name)
            log.warning("a %s among the prompts cannot be copied (%s): rewards share it", name, reason(error))
        return value


def _is_frozen(value: Any) -> bool:
    """A frozen dataclass of plain values, as media files are."""
    return (
        is_dataclass(value)
        and not isinstance(value, type)
        and value.__dataclass_params__.frozen
        and all(type(getattr(value, f.name)) in _UNCHANGEABLE for f in fields(value))
    )
