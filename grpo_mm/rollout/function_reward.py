"""A user's own plain function as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.registry import check_trusted, load
from grpo_mm.rollout.safe_call import as_scores
from grpo_mm.types import Prompt


@dataclass
class FunctionReward:
    """Calls `def reward(images, prompts, metadata) -> list[float]`, found by its path `package.module:function`.

    images: a list of PIL pictures; for a policy that writes, a list of texts (call the argument `texts` then: the
    three are passed by position). prompts: a list of texts. metadata: a list of the prompts' targets, {} where there is
    none. All three have the same length, and so has the result: a number for each, float("nan") for what cannot be
    scored. A dict of such lists may be returned too: "score", and further parts to be logged.
    """

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
        UserError: another number of scores than M, or something that is no number.
    """
    outputs = as_pictures(items) if isinstance(items, Tensor) and items.ndim == 4 else list(items)
    metadata = [{} if prompt.target is None else prompt.target for prompt in prompts]
    return as_scores(function(outputs, [prompt.text for prompt in prompts], metadata), len(prompts))


def as_pictures(images: Tensor) -> list[Any]:
    """uint8 [M, 3, H, W] -> M PIL pictures."""
    from PIL import Image

    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
