"""The control of grounding: the same questions about the wrong videos, or other questions about the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class Swapped:
    """Each prompt of another source with the media, or the text, of the one `shift` places on; targets stay.

    A model that looks and reads must do worse on both: evaluate a run with it (eval_prompts.NAME.use={kind: swapped, of: …}).
    """

    of: Annotated[Any, Role("prompts")]
    """The source whose prompts are changed."""
    what: Literal["media", "text"] = "media"
    """What comes from another prompt: its media, or its text."""
    shift: int = 1
    """How many prompts further on that one stands."""

    def __post_init__(self) -> None:
        if self.shift < 1:
            raise ConfigError(f"swapped: shift = {self.shift}; wanted at least 1.")

    def check(self) -> None:
        if hasattr(self.of, "check"):
            self.of.check()

    def load(self) -> list[Prompt]:
        prompts = list(self.of.load())
        if len(prompts) <= self.shift:
            raise ConfigError(f"swapped: {len(prompts)} prompts leave nothing to swap with at shift = {self.shift}.")
        others = prompts[self.shift :] + prompts[: self.shift]
        return [replace(p, **{self.what: getattr(o, self.what)}) for p, o in zip(prompts, others, strict=True)]
