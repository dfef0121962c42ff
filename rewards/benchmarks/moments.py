"""QVHighlights from texts: all windows that fit a sentence, and how salient the clips are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_mm.rewards.benchmarks.qvhighlights_metrics import CLIP_SECONDS, highlight_detection, moment_retrieval
from grpo_mm.rewards.benchmarks.window_metrics import shares
from grpo_mm.rewards.text.spans import parse_spans
from grpo_mm.rewards.video.timestamp_matching import on_grid, parse_highlights
from grpo_mm.types import Prompt

PRINTED = ("r1_at_0.5", "r1_at_0.7", "map_at_0.5", "map_at_0.75", "map")
UNLISTED = -1.0


@dataclass(frozen=True)
class MomentRetrieval:
    """`moment_retrieval` of the spans in a text, in its order, against prompt.target["spans"].

    "full/r1_at_0.5", "full/r1_at_0.7", "full/map_at_0.5", "full/map_at_0.75", "full/map" (over .5:.05:.95), the "map" of
    "short", "middle" and "long" references, and "parse_failed", in shares of 1. A length that no reference has is left
    out. A text gives no scores of its windows: the order stands for them, which is our choice.
    """

    sources: tuple[str, ...] | None = None
    """Held-out prompts of these sources; None: of all."""
    tag: str | None = "answer"
    """The element that holds the spans; None: anywhere. Without the element, the entire text."""
    require_tag: bool = False
    """A text without the element has no span or box."""

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has annotated spans."""
        return isinstance(prompt.target, Mapping) and bool(prompt.target.get("spans"))

    def __call__(self, texts: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        return shares(self.score([self.read(text) for text in texts], prompts))

    def read(self, text: str | None) -> list[list[float]] | None:
        """Windows [start, end, score] of a text; None if there are none."""
        spans = [] if text is None else parse_spans(text, tag=self.tag, require_tag=self.require_tag)
        return [[start, end, 0.0] for start, end in spans] or None  # equal scores keep their order

    def score(self, predictions: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Figures in per cent of [[start, end, score], …] or None per prompt, and "full/queries", …, numbers."""
        references = [{"qid": i, "relevant_windows": prompt.target["spans"]} for i, prompt in enumerate(prompts)]
        found = moment_retrieval(_records(predictions, "pred_relevant_windows"), references)
        result = {f"full/{name}": found["full"][name] for name in (*PRINTED, "queries")}
        for length in ("short", "middle", "long"):
            result |= {f"{length}/{name}": found[length][name] for name in ("map", "queries")}
        return result | {"parse_failed": _failed(predictions)}


@dataclass(frozen=True)
class Highlights:
    """`highlight_detection` of the times and scores in a text against the annotators of QVHighlights.

    "fair/hit_at_1", "fair/map", the same of "good" and "very_good" (which papers quote), and "parse_failed", in shares of 1.
    The target holds "saliency" (three scores of 0 to 4 per clip of 2 s), "clips" (those that are listed) and "duration". A
    clip that the text names stands above all that it does not, even if its score is 0 or missing: our choice.
    """

    sources: tuple[str, ...] | None = None
    """Held-out prompts of these sources; None: of all."""
    tag: str | None = "answer"
    """Without this element the entire text is read; None: always."""

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether annotators have scored clips of the prompt's video."""
        return isinstance(prompt.target, Mapping) and {"saliency", "clips", "duration"} <= set(prompt.target)

    def __call__(self, texts: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        rows = [self.read(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        return shares(self.score(rows, prompts))

    def read(self, text: str | None, prompt: Prompt) -> list[float] | None:
        """One score per clip of the prompt's video; None if the text names none of them."""
        times = [] if text is None else parse_highlights(text, tag=self.tag)
        named = on_grid(times, clip_seconds=CLIP_SECONDS)
        clips = range(int(prompt.target["duration"] / CLIP_SECONDS))
        return [named.get(clip, UNLISTED) for clip in clips] if any(clip in named for clip in clips) else None

    def score(self, predictions: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Figures in per cent of a score per clip, or None, per prompt, and "queries", a number."""
        references = [
            {
                "qid": i,
                "duration": prompt.target["duration"],
                "relevant_clip_ids": prompt.target["clips"],
                "saliency_scores": [prompt.target["saliency"][clip] for clip in prompt.target["clips"]],
            }
            for i, prompt in enumerate(prompts)
        ]
        found = highlight_detection(_records(predictions, "pred_saliency_scores"), references)
        result = {f"{level}/{name}": row[name] for level, row in found.items() for name in ("hit_at_1", "map")}
        return result | {"parse_failed": _failed(predictions), "queries": float(len(prompts))}


def _records(predictions: Sequence[Any], field: str) -> list[dict[str, Any]]:
    """As the scorers take them, numbered: a prompt that is asked several times is as many queries."""
    return [{"qid": i, field: own} for i, own in enumerate(predictions) if own is not None]


def _failed(predictions: Sequence[Any]) -> float:
    return 100 * sum(own is None for own in predictions) / len(predictions)
