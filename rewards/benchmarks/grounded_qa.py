"""NExT-GQA from texts: is the answer right, and does the span lie where the video shows it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_mm.rewards.answers.tags import answer_text
from grpo_mm.rewards.benchmarks.window_metrics import Window, nextgqa_metrics, shares
from grpo_mm.rewards.shared.prompt_target import choices_of
from grpo_mm.rewards.text.spans import Pick, parse_spans, pick_span
from grpo_mm.rewards.text.typed_answer import answer_accuracy
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class GroundedQa:
    """`nextgqa_metrics` of an answer and one span per text, against prompt.target["answer"] and ["spans"].

    "acc_qa", "miop", "iop_at_0.3", "iop_at_0.5", "miou", "iou_at_0.3", "iou_at_0.5", "acc_at_gqa" (right and IoP >= .5) and
    "parse_failed" (no span), in shares of 1.

    Source: arXiv:2309.01327. Grade A for the figures; the elements are those of VideoChat-R1, arXiv:2504.06958. Uncertain:
    which of several spans of a text counts; we take the first.
    """

    sources: tuple[str, ...] | None = None
    """Held-out prompts of these sources; None: of all."""
    answer_tag: str | None = "answer"
    """The element that holds the answer. A text without it is the answer as a whole; None: always."""
    span_tag: str | None = "glue"
    """The element that holds the span. A text without it has none; None: anywhere."""
    pick: Pick = "first"
    """Which span of the text counts."""

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has an answer and annotated spans."""
        target = prompt.target if isinstance(prompt.target, Mapping) else {}
        return bool(target.get("spans")) and target.get("answer") not in (None, "")

    def __call__(self, texts: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        spans = [self.span(text) for text in texts]
        correct = [self.is_right(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        return shares(self.score(spans, correct, prompts))

    def span(self, text: str | None) -> Window | None:
        """The span of a text; None if there is none."""
        spans = [] if text is None else parse_spans(text, tag=self.span_tag, require_tag=self.span_tag is not None)
        return pick_span(spans, self.pick)

    def is_right(self, text: str | None, prompt: Prompt) -> bool:
        """Whether the answer of a text is that of the prompt, by the rule of its type."""
        if text is None:
            return False
        given = answer_text(text, self.answer_tag)
        kind = prompt.target.get("answer_type") or "multiple choice"
        return answer_accuracy(given, prompt.target["answer"], kind, choices_of(prompt)) == 1

    def score(
        self, spans: Sequence[Window | None], correct: Sequence[bool], prompts: Sequence[Prompt]
    ) -> dict[str, float]:
        """Figures in per cent, and "queries", a number."""
        return nextgqa_metrics(spans, [prompt.target["spans"] for prompt in prompts], correct)
