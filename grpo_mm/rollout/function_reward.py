"""A user's own plain function as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.registry import check_trusted, load
from grpo_mm.rollout.returned_scores import as_scores
from grpo_mm.rollout.reward_arguments import arguments
from grpo_mm.rollout.surroundings import kept
from grpo_mm.types import Prompt


@dataclass
class FunctionReward:
    """Calls a function, such as `def reward(images, prompts) -> list[float]`, found by its path `package.module:function`.

    It gets what the names of its arguments say, each a list of one length: images or texts, prompts, metadata, media, ids, a
    column of the data, …, see `reward_arguments.arguments`. So long is the result: a number for each; None or float("nan") for what
    the reward does not apply to or cannot score. A dict of such lists may be returned too: "score", and further parts to be logged.
    """

    is_users: ClassVar[bool] = True
    """What it calls may change what it is handed."""
    path: str
    """The module must be importable: installed, or in the folder that the command is started from."""
    timeout_seconds: float | None = field(default=None, metadata=FREE)
    """For all outputs of a step on one rank; a call that takes longer makes them NaN, see `score_safely`."""

    def __post_init__(self) -> None:
        if self.path.count(":") != 1:
            raise ConfigError(f"function reward: path = {self.path!r}, wanted package.module:function.")
        if self.timeout_seconds is not None and self.timeout_seconds <= 0:
            raise ConfigError(f"function reward: timeout_seconds = {self.timeout_seconds}, wanted above 0, or null.")

        check_trusted(self.path)

    def check(self) -> None:
        """Raises ConfigError if the function is not there."""
        with kept(self.path, "code of"):
            self._function()

    def __call__(self, items: Any, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Raises UserError if the function returns another number of scores, or something that is no number."""
        return call_function(self._function(), items, prompts)

    @property
    def users_function(self) -> Callable[..., Any]:
        """What is called; the record of a run keeps a digest of it."""
        return self._function()

    def _function(self) -> Callable[..., Any]:
        function = load(self.path)
        if not callable(function):
            raise ConfigError(f"function reward: {self.path} is {function!r}, wanted a function.")
        return function


def call_function(function: Callable[..., Any], items: Any, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """A user's function on M outputs -> "score" [M] and parts; `functools.partial(call_function, f)` is a reward.

    Raises:
        UserError: an argument that there is not, another number of scores than M, or something that is no number.
    """
    args, kwargs = arguments(function, items, prompts)
    return as_scores(function(*args, **kwargs), len(prompts))
