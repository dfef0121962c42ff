"""What a prompt says of the right answer, for rewards only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.types import Prompt


def target_of(prompt: Prompt) -> Mapping[str, Any]:
    """The target of a prompt; empty if it is no mapping."""
    return prompt.target if isinstance(prompt.target, Mapping) else {}


def choices_of(prompt: Prompt) -> tuple[str, ...]:
    """The texts of the options that a prompt offers, under "choices" or "options" of its target; () if there are none."""
    target = target_of(prompt)
    found = target.get("choices") or target.get("options")
    is_list = isinstance(found, Sequence) and not isinstance(found, str)
    return tuple(found) if is_list and all(isinstance(choice, str) for choice in found) else ()
