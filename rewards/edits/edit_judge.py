"""A vision-language model sees the source, the result and the instruction, and says how good the edit is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from grpo_mm.registry import Role
from grpo_mm.rewards.judges.asks_vlm import AsksVlm
from grpo_mm.rewards.judges.unified_reward import parse_point
from grpo_mm.rewards.judges.vlm import Question, answers_of
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.source_picture import source_of
from grpo_mm.types import Prompt


@dataclass
class EditJudge(AsksVlm):
    """score = final score of the model / 5, so 0.2 to 1; NaN where there is no answer or no score in it. One call an edit.

    For two results beside one source ask {kind: win_rate, judge: {kind: server, form: edit, …}}; `edit_score` asks twice and takes
    numbers for following, keeping and quality.

    Source: the form of answer is UnifiedReward's (arXiv:2503.05236); the question is in our own words, as the published one for edits
    was not at hand.
    """

    needs_source: ClassVar[bool] = True
    vlm: Annotated[Any, Role("vlm")]
    """Who is asked: kind transformers (a local model) or server."""

    @takes_pictures
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts with a picture -> score [M]; raises UserError for a prompt without one."""
        sources = {id(prompt): source_of(prompt) for prompt in {id(p): p for p in prompts}.values()}
        questions = [Question(edit_point(p.text), (sources[id(p)], item)) for item, p in zip(items, prompts)]
        scores = [parse_point(answer) for answer in answers_of(self.vlm, questions)]
        return {"score": torch.tensor([torch.nan if s is None else s / 5 for s in scores], dtype=torch.float32)}


def edit_point(instruction: str) -> str:
    """Asks for a score of one edit, for `parse_point`."""
    return f"""The first picture was edited by an instruction, and the second is the result. Rate the edit. Three things count:
1. Instruction: is everything done that it asks, and where it asks?
2. Keeping: is all else as it was, people and letters most of all? A result that is the source again has kept everything and done nothing: it is bad.
3. Quality: is the result without seams, smears and broken shapes?
Say in a line to each what you see. Then end with one line "Final Score: s", where s is a number from 1 (bad) to 5 (excellent).
Instruction: [{instruction}]"""
