"""What the report draws of a text that names time spans: where they lie on the clip, and where they should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from grpo_mm.rewards.text.spans import parse_spans, pick_span
from grpo_mm.types import Prompt


@dataclass(frozen=True)
class TimeLine:
    """Spans of an answer beside prompt.target["spans"], on a line of target["duration"] seconds.

    It stands beside the parser that the rewards use, so that what is drawn is what was scored: set `tag`, `require_tag` and
    `pick` as in the reward.
    """

    tag: str | None = "answer"
    """The element that holds the spans; None: anywhere. Without the element, the entire text."""
    require_tag: bool = False
    """A text without the element has no span."""
    pick: Literal["all", "first", "last"] = "all"
    """Which spans of the answer are drawn."""

    def truth(self, prompt: Prompt) -> dict[str, Any]:
        """The annotated spans; the duration where it is known."""
        target = prompt.target if isinstance(prompt.target, Mapping) else {}
        return {"extent": target.get("duration"), "spans": [list(span) for span in target.get("spans") or ()]}

    def __call__(self, prompt: Prompt, text: str) -> dict[str, Any]:
        """The spans of the text as they are written."""
        spans = parse_spans(text, tag=self.tag, require_tag=self.require_tag)
        if self.pick != "all":
            span = pick_span(spans, self.pick)
            spans = [] if span is None else [span]
        return {"spans": [list(span) for span in spans]}
