"""How far answers agree with what is true, where the run's sketch reads the spans of a text."""

from __future__ import annotations

import math
from typing import Any

from grpo_mm.looking.transcripts import marks_of
from grpo_mm.looking.truth import agreement
from grpo_mm.types import Prompt


def agreement_of(prompt: Prompt, text: str | None, sketch: Any) -> float:
    """`agreement`; NaN for a prompt that could not be asked, and for spans that no sketch reads."""
    if text is None or (sketch is None and isinstance(prompt.target, dict) and prompt.target.get("spans")):
        return math.nan
    return agreement(prompt, text, () if sketch is None else marks_of(prompt, text, sketch).spans)
