"""Does the answer say the same as the reference? A judge decides where rules cannot (GRIT)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.registry import Role
from grpo_mm.rewards.answers.tags import last_element
from grpo_mm.rewards.answers.writing import normal_form
from grpo_mm.rewards.faithfulness.consistency import question_text
from grpo_mm.rewards.judges.verdicts import Query, quoted, verdict_request
from grpo_mm.rewards.judges.vlm import JUDGE_SECONDS
from grpo_mm.rewards.shared.prompt_target import choices_of
from grpo_mm.rewards.text.typed_answer import same_choice
from grpo_mm.types import Prompt

WORDS = ("yes", "no")


def answer_query(question: str, reference: str, answer: str) -> Query:
    """Asks a text judge whether an answer means the same as the reference.

    Source: arXiv:2505.15879 (GRIT), answer reward; the words are ours. Grade B.
    """
    text = f"""A question about pictures has a known answer. Decide whether another answer to it means the same.

yes: it says the same, in whatever words, and commits itself to that.
no: it says something else, leaves the matter open, or offers several answers, even if the right one is among them.

Question:
{quoted(question)}

Known answer:
{quoted(reference, max_chars=1000)}

Answer to judge:
{quoted(answer, max_chars=1000)}

{verdict_request(WORDS)}"""
    return Query(text, WORDS)


@dataclass
class AnswerJudge:
    """score = 1 if the answer element says what prompt.target["answer"] says, else 0; NaN where the judge gave no verdict.

    The same text but for case, blanks and a full stop, or the same option letter, is right without a call; an empty one, or a text without the
    element, is wrong without one. Without a judge these rules decide alone. Part: "asked" (1 where the judge was needed). It
    applies to prompts with a reference answer.

    Source: arXiv:2505.15879 (GRIT): judge score 0 or 1. Grade B. Deviates: the judge is not asked where rules suffice; the
    share of BLEU-1 is a reward of its own.
    """

    judge: Annotated[Any, Role("verdict")] | None = None
    """Reads texts only. None: rules."""
    tag: str | None = "answer"
    """None: the entire text is the answer."""

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

    def to(self, device: torch.device | str) -> AnswerJudge:
        if hasattr(self.judge, "to"):
            self.judge.to(device)
        return self

    def applies_to(self, prompt: Prompt) -> bool:
        return _reference(prompt) is not None

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and asked, [M] each; NaN for a prompt without a reference answer."""
        answers = [text if self.tag is None else last_element(text, self.tag) for text in items]
        pairs = [(answer, _reference(prompt)) for answer, prompt in zip(answers, prompts, strict=True)]
        scores = [
            math.nan if reference is None else float(_same(answer, reference, choices_of(prompt)))
            for (answer, reference), prompt in zip(pairs, prompts)
        ]
        open_ = [
            i
            for i, (answer, _) in enumerate(pairs)
            if self.judge is not None and scores[i] == 0 and (answer or "").strip()
        ]
        if open_:
            judge: Any = self.judge
            queries = [answer_query(question_text(prompts[i]), pairs[i][1], pairs[i][0]) for i in open_]
            for i, word in zip(open_, judge.verdicts(queries), strict=True):
                scores[i] = math.nan if word is None else float(word == "yes")
        asked = set(open_)
        was_asked = [math.nan if pairs[i][1] is None else float(i in asked) for i in range(len(pairs))]
        return {"score": torch.tensor(scores).double(), "asked": torch.tensor(was_asked).double()}


def _same(answer: str | None, reference: str, choices: Sequence[str]) -> bool:
    if answer is None or not answer.strip():
        return False
    return bool(same_choice(answer, reference, choices)) or _plain(answer) == _plain(reference)


def _plain(text: str) -> str:
    return " ".join(normal_form(text).strip(" .!\"'").casefold().split())


def _reference(prompt: Prompt) -> str | None:
    answer = prompt.target.get("answer") if isinstance(prompt.target, Mapping) else None
    return None if answer is None or answer == "" else str(answer)
