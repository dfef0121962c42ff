"""R1@m and mIoU of the spans in texts, for one way of asking or for the better of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.benchmarks.window_metrics import THRESHOLDS, Window, best_iou, grounding_metrics, shares
from grpo_mm.rewards.text.spans import Pick, parse_spans, pick_span
from grpo_mm.types import Prompt

Kind = Literal["hull", "set"]
UPPER_BOUND = "oracle_upper_bound"


@dataclass(frozen=True)
class TemporalGrounding:
    """`grounding_metrics` of one span per text against prompt.target["spans"], the best of which counts.

    "r1_at_0.3", …, "miou" and "parse_failed", in shares of 1. Settings as in the reward `temporal_iou`.
    """

    sources: tuple[str, ...] | None = None
    """Held-out prompts of these sources; None: of all."""
    pick: Pick = "last"
    """Which span of the text counts: the last (Time-R1), the first (TimeLens, TimeChat)."""
    tag: str | None = "answer"
    """The element that holds the span; None: anywhere. Without the element, the entire text."""
    require_tag: bool = False
    """A text without the element has no span or box."""
    swap_reversed: bool = False
    """Read "20 to 10" as 10 to 20."""
    thresholds: tuple[float, ...] = THRESHOLDS
    """IoU from which on a span or box counts, each with a figure of its own."""
    strict: bool = False
    """R1 wants more than the threshold (Time-R1) instead of at least it."""
    iou: Kind = "hull"
    """As in the reward `temporal_iou`."""

    def __post_init__(self) -> None:
        if self.iou not in get_args(Kind) or self.pick not in get_args(Pick):
            raise ConfigError(f"iou = {self.iou!r}, pick = {self.pick!r}; wanted hull or set, and first or last.")

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has annotated spans."""
        return isinstance(prompt.target, Mapping) and bool(prompt.target.get("spans"))

    def __call__(self, texts: Sequence[str | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        return shares(self.score([self.read(text) for text in texts], prompts))

    def read(self, text: str | None) -> Window | None:
        """The span of a text; None if there is none."""
        if text is None:
            return None
        spans = parse_spans(text, tag=self.tag, require_tag=self.require_tag)
        span = pick_span(spans, self.pick)
        return (min(span), max(span)) if span and self.swap_reversed else span

    def score(self, predictions: Sequence[Window | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Figures in per cent of (start, end) in seconds per prompt, and "queries", their number."""
        return grounding_metrics(
            predictions, _references(prompts), thresholds=self.thresholds, strict=self.strict, kind=self.iou
        )


@dataclass(frozen=True)
class BestOfModes(TemporalGrounding):
    """R1@m and mIoU of each way of asking (a source each, e.g. "direct" and "think"), and of the better one per prompt.

    "direct/miou", "think/miou", …, and "oracle_upper_bound/…": which answer is the better one is told by the annotation, so
    no model that is in use could reach it. Prompts belong together by their id; of several samples, the first of each
    source, the second of each, and so on.

    Source: section 4 of TempSamp-R1 (arXiv:2509.18056), whose tables call it mixed. Grade B. The figures of QVHighlights
    that stand there are not computed for it: what is better for a mean average precision is not said.
    """

    def score(self, predictions: Sequence[Window | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Raises ConfigError: there is one source only, or a prompt is not asked by each of them."""
        rows = _rows_of_modes(prompts)
        result: dict[str, float] = {}
        for mode, own in rows.items():
            found = super().score([predictions[i] for i in own.values()], [prompts[i] for i in own.values()])
            result |= {f"{mode}/{name}": value for name, value in found.items()}
        iou_N = best_iou(predictions, _references(prompts), kind=self.iou)
        first, *_ = rows.values()
        best = [
            max((own[key] for own in rows.values()), key=lambda i: (iou_N[i], predictions[i] is not None))
            for key in first
        ]
        found = super().score([predictions[i] for i in best], [prompts[i] for i in best])
        return result | {f"{UPPER_BOUND}/{name}": value for name, value in found.items()}


def _references(prompts: Sequence[Prompt]) -> list[list[Window]]:
    return [[(float(start), float(end)) for start, end in prompt.target["spans"]] for prompt in prompts]


def _rows_of_modes(prompts: Sequence[Prompt]) -> dict[str, dict[tuple[str, int], int]]:
    """Source → (prompt id, number of the sample) → row."""
    rows: dict[str, dict[tuple[str, int], int]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for i, prompt in enumerate(prompts):
        name = prompt.repeat_of or prompt.id
        rows.setdefault(prompt.source, {})[name, seen[prompt.source, name]] = i
        seen[prompt.source, name] += 1
    if len(rows) < 2:
        raise ConfigError(f"best_of_modes compares sources, found only {', '.join(rows)}; name two in eval_prompts.")
    every = set().union(*rows.values())
    for mode, own in rows.items():
        if missing := sorted(every - set(own)):
            raise ConfigError(
                f"best_of_modes: the source {mode!r} does not ask {len(missing)} prompts that another asks, e.g. "
                f"{missing[0][0]!r}; give each source the same annotations."
            )
    return rows
