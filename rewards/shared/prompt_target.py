"""What a prompt says of the right answer, for rewards only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_mm.types import Prompt


def target_of(prompt: Prompt) -> Mapping[str, Any]:
    """The target of a prompt; empty if it is no mapping."""
    return prompt.target if isinstance(prompt.target, Mapping) else {}
