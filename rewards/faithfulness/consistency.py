"""Does the answer follow from the reasoning? By rules, or by a judge that reads both. Whether it is right plays no part."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rewards.faithfulness.conclusions import concludes
from grpo_mm.rewards.faithfulness.sentences import reasoning_and_answer
from grpo_mm.rewards.judges.verdicts import Query, quoted, verdict_request
from grpo_mm.rewards.judges.vlm import JUDGE_SECONDS
from grpo_mm.types import Prompt

WORDS = ("yes", "no", "uncertain")
_MARKER = re.compile(r"<(?:image|video)>")


def consistency_query(question: str, reasoning: str, answer: str, *, max_chars: int = 6000) -> Query:
    """Asks a text judge whether the answer follows. It sees no picture and is not asked for the truth.

    Source: arXiv:2604.08476 (Faithful GRPO), R_C: the criteria are the paper's, the words are ours. Grade B.
    """
    text = f"""A model was asked a question about pictures, thought aloud, and gave an answer. Decide whether its answer follows from its thoughts. You do not see the pictures, and it does not matter whether the answer is true.

yes: the thoughts lead to this answer, and end on it or leave no other.
no: they end on another answer, contradict this one, or break off before any conclusion.
uncertain: the end is vague, or several answers stay open.

Question:
{quoted(question, max_chars=max_chars)}

Thoughts:
{quoted(reasoning, max_chars=max_chars)}

Answer:
{quoted(answer, max_chars=max_chars // 4)}

{verdict_request(WORDS)}"""
    return Query(text, WORDS)


def question_text(prompt: Prompt) -> str:
    """A prompt's text without the markers of its media, after the earlier turns of its conversation if there are any."""
    before = [f"{turn['role']}: {turn['content']}" for turn in prompt.messages]
    return _MARKER.sub(" ", "\n".join([*before, prompt.text])).strip()


@dataclass
class Consistency:
    """score = 1 if the answer follows from the reasoning, else 0; NaN where that cannot be told. It applies to every prompt.

    Without a judge the conclusion of the last sentences is compared with the answer (`concludes`): NaN where either is of
    no kind that rules read. With a judge: 1 for yes; 0 for no and uncertain, and without a call for a text without any
    reasoning; NaN where the judge gave no verdict. NaN for a text without an answer element.

    Parts: "read" (1 where there is a score). With a judge also "rules" (what the rules say) and "agree" (1 where both say
    the same, NaN where one says nothing).

    Traps: NaN rows are left out of a plain weighted sum; under `lagrangian` only their constraint is masked. What cannot be
    told is a way out for the policy: watch "read". One sentence of reasoning is consistent: keep a floor on what it says.

    Source: arXiv:2604.08476 (Faithful GRPO), R_C. Grade B: the judge. The rules are ours.
    """

    judge: Annotated[Any, Role("verdict")] | None = None
    """Reads texts only. None: rules."""
    tag: str = "answer"
    """The element that holds the answer; the reasoning stands before it."""
    sentences: int = 3
    """From the end, in which rules look for the conclusion."""
    max_chars: int = 6000
    """Of the reasoning that a judge is shown; of a longer one the beginning and the end."""

    def __post_init__(self) -> None:
        if self.sentences < 1 or self.max_chars < 100:
            raise ConfigError(
                f"consistency: sentences = {self.sentences}, max_chars = {self.max_chars}; wanted 1 or more, 100 or more."
            )

    @property
    def timeout_seconds(self) -> float | None:
        return None if self.judge is None else JUDGE_SECONDS

    def check(self) -> None:
        """Raises ConfigError if the judge cannot be asked."""
        if hasattr(self.judge, "check"):
            self.judge.check()

    @property
    def needs_device(self) -> bool:
        return bool(getattr(self.judge, "needs_device", hasattr(self.judge, "to")))

    def to(self, device: torch.device | str) -> Consistency:
        if hasattr(self.judge, "to"):
            self.judge.to(device)
        return self

    def applies_to(self, prompt: Prompt) -> bool:
        return True

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each."""
        parts = [reasoning_and_answer(text, tag=self.tag) for text in items]
        rules_M = _column([self._by_rules(part, prompt) for part, prompt in zip(parts, prompts, strict=True)])
        if self.judge is None:
            return {"score": rules_M, "read": rules_M.isfinite().double()}
        judged_M = _column(self._by_judge(parts, prompts))
        both_M = rules_M.isfinite() & judged_M.isfinite()
        agree_M = torch.where(both_M, (rules_M == judged_M).double(), torch.nan)
        return {"score": judged_M, "read": judged_M.isfinite().double(), "rules": rules_M, "agree": agree_M}

    def _by_rules(self, part: tuple[str, str] | None, prompt: Prompt) -> float:
        if part is None:
            return math.nan
        target = prompt.target if isinstance(prompt.target, Mapping) else {}
        choices = [str(choice) for choice in target.get("choices") or ()]
        found = concludes(*part, choices=choices, last=self.sentences)
        return math.nan if found is None else float(found)

    def _by_judge(self, parts: Sequence[tuple[str, str] | None], prompts: Sequence[Prompt]) -> list[float]:
        judge: Any = self.judge
        asked = [i for i, part in enumerate(parts) if part is not None and part[0]]
        queries = [consistency_query(question_text(prompts[i]), *parts[i], max_chars=self.max_chars) for i in asked]
        scores = [math.nan if part is None else 0.0 for part in parts]
        for i, word in zip(asked, judge.verdicts(queries), strict=True):
            scores[i] = math.nan if word is None else float(word == "yes")
        return scores


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
