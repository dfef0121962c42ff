"""What a config or a caller names as a reward, in the form in which it is called."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grpo_mm.rollout.function_reward import call_function
from grpo_mm.types import Prompt


def as_reward(use: Any) -> Any:
    """A user's plain function `(images, prompts, metadata)` behind the signature of a reward."""
    return partial(call_function, use) if inspect.isroutine(use) else use


def in_sets(reward: Any, group_U: Tensor) -> Any:
    """A reward over sets with its third argument."""
    return partial(_with_groups, reward, group_U)


def _with_groups(reward: Any, group_U: Tensor, items: Any, prompts: Sequence[Prompt]) -> Any:
    return reward(items, prompts, group_U.clone())


def move(reward: Any, device: torch.device) -> None:
    """A network goes to the device; other rewards have nothing to move."""
    if hasattr(reward, "to"):
        reward.to(device)
