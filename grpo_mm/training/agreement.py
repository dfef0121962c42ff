"""How far answers agree with what is true, where the run's sketch reads the spans of a text."""

from __future__ import annotations

import math

from grpo_mm.looking.transcripts import Sketch, marks_of, truth_marks
from grpo_mm.looking.truth import agreement, box_agreement, right_answer
from grpo_mm.types import Prompt


def agreement_of(prompt: Prompt, text: str | None, sketch: Sketch | None) -> float:
    """`agreement`, or of a prompt of which only boxes are true `box_agreement`; NaN for a prompt that could not be asked, and for
    spans and boxes that no sketch reads."""
    target = prompt.target if isinstance(prompt.target, dict) else {}
    if text is None or (sketch is None and target.get("spans")):
        return math.nan
    if sketch is None:
        return agreement(prompt, text)
    marks = marks_of(prompt, text, sketch)
    if target.get("boxes") and not right_answer(prompt, boxes=False):
        return box_agreement(marks.boxes, truth_marks(prompt, sketch).boxes)
    return agreement(prompt, text, marks.spans)
