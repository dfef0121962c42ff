"""How well does the time span in a text match the annotated one? Temporal IoU in its published forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.answers.times import Span
from grpo_mm.rewards.text.spans import Pick, parse_spans, pick_span
from grpo_mm.types import Prompt

Kind = Literal["hull", "set", "timestamp_aware", "union"]


def hull_iou(span: Span, reference: Span) -> float:
    """Shared seconds over the seconds from the earlier start to the later end, in [0, 1].

    0 for a span that is reversed, infinite or NaN, and for one of zero length, unless both are the same point (1: the
    specification leaves 0/0 open). Never NaN.

    Source: Time-R1 (arXiv:2503.13377), VideoChat-R1 (arXiv:2504.06958), TempSamp-R1 (arXiv:2509.18056), TimeLens
    (arXiv:2512.14698). Grade A. It equals `set_iou` wherever the spans are valid.
    """
    shared = shared_seconds(span, reference)
    hull = max(span[1], reference[1]) - min(span[0], reference[0])
    return shared / hull if shared > 0 else float(_same_point(span, reference))


def set_iou(span: Span, reference: Span) -> float:
    """Shared seconds over the seconds that one or the other covers, in [0, 1]; odd spans as in `hull_iou`.

    Source: the matching of average precision in the QVHighlights scorer. Grade A.
    """
    shared = shared_seconds(span, reference)
    covered = (span[1] - span[0]) + (reference[1] - reference[0]) - shared
    return shared / covered if shared > 0 else float(_same_point(span, reference))


def timestamp_aware_iou(span: Span, reference: Span, duration: float) -> float:
    """`hull_iou` · (1 - |start error| / duration) · (1 - |end error| / duration), in [0, 1].

    Args:
        duration: of the decoded clip, in seconds, > 0; not that of the file if the clip was cut out of it.

    Source: Time-R1's second reward, arXiv:2503.13377. Grade A. Deviates: a factor below 0 (an error longer than the
    clip) counts as 0, as two of them would make a positive product.
    """
    iou = hull_iou(span, reference)
    if iou == 0:
        return 0.0
    start, end = (max(0.0, 1 - abs(own - other) / duration) for own, other in zip(span, reference))
    return iou * start * end


def union_iou(spans: Sequence[Span], references: Sequence[Span]) -> float:
    """IoU of the union of the spans with the union of the references, in [0, 1].

    Spans that are reversed, infinite or NaN cover nothing. Of one span and one reference it is their `set_iou`.

    Source: VideoChat-R1's glue reward, arXiv:2504.06958. Grade A.
    """
    own, other = merged(spans), merged(references)
    if len(spans) == len(references) == 1 and not own:
        return float(_same_point(spans[0], references[0]))
    if not own or not other:
        return 0.0
    shared, i, j = 0.0, 0, 0
    while i < len(own) and j < len(other):
        shared += shared_seconds(own[i], other[j])
        i, j = (i + 1, j) if own[i][1] < other[j][1] else (i, j + 1)
    return shared / (sum(e - s for s, e in own) + sum(e - s for s, e in other) - shared)


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same seconds as spans that neither overlap nor touch, in order; invalid and empty spans are left out."""
    result: list[Span] = []
    for start, end in sorted(span for span in spans if _is_finite(span) and span[0] < span[1]):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def shared_seconds(span: Span, other: Span) -> float:
    """Length of the intersection; 0 for a span that is reversed, infinite or NaN."""
    if not (_is_finite(span) and _is_finite(other)):
        return 0.0
    return max(0.0, min(span[1], other[1]) - max(span[0], other[0]))


def _is_finite(span: Span) -> bool:
    return math.isfinite(span[0]) and math.isfinite(span[1])


def _same_point(span: Span, other: Span) -> bool:
    return span[0] == span[1] == other[0] == other[1] and _is_finite(span)


@dataclass(frozen=True)
class TemporalIou:
    """score = temporal IoU of the span in the text with the nearest of prompt.target["spans"] (seconds); 0 if unreadable.

    Parts: "parse_failed" (1 where no span was found), "iou" (without the factors of `timestamp_aware`; its mean is
    mIoU) and "r1_at_0.3", "r1_at_0.5", … (1 where that IoU reaches the threshold).

    A reversed span scores 0. Annotated spans are taken as they are; clamp them to the clip where the data are made.
    """

    iou: Kind = "hull"
    """`union` compares all spans of the text with all annotated ones, and `pick` has no part in it."""
    pick: Pick = "last"
    """Which span of the text counts: the last (Time-R1), the first (TimeLens, TimeChat)."""
    tag: str | None = "answer"
    """The element that holds the span ("glue" for VideoChat-R1); None: anywhere. Without the element, the entire text."""
    require_tag: bool = False
    """A text without the element has no span."""
    swap_reversed: bool = False
    """Read "20 to 10" as 10 to 20."""
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    """IoU from which on a span or box counts, each with a figure of its own."""
    strict: bool = False
    """R1 wants more than the threshold (Time-R1) instead of at least it."""

    def __post_init__(self) -> None:
        if self.iou not in get_args(Kind) or self.pick not in get_args(Pick):
            raise ConfigError(
                f"iou = {self.iou!r}, pick = {self.pick!r}; wanted an iou of {', '.join(get_args(Kind))} and a pick of "
                f"{' or '.join(get_args(Pick))}."
            )

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has annotated spans, and for `timestamp_aware` a duration."""
        target = prompt.target if isinstance(prompt.target, Mapping) else {}
        return bool(target.get("spans")) and (self.iou != "timestamp_aware" or (target.get("duration") or 0) > 0)

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt to which it does not apply."""
        rows = [self._one(text, prompt) for text, prompt in zip(items, prompts, strict=True)]
        score_M, iou_M, failed_M = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).T
        parts = {"score": score_M, "parse_failed": failed_M, "iou": iou_M}
        for threshold in self.thresholds:
            reached_M = iou_M > threshold if self.strict else iou_M >= threshold
            parts[f"r1_at_{threshold:g}"] = torch.where(iou_M.isnan(), torch.nan, reached_M.double())
        return parts

    def _one(self, text: str, prompt: Prompt) -> tuple[float, float, float]:
        """score, IoU, parse_failed"""
        if not self.applies_to(prompt):
            return (math.nan,) * 3
        references = [(float(start), float(end)) for start, end in prompt.target["spans"]]
        spans = parse_spans(text, tag=self.tag, require_tag=self.require_tag)
        if self.swap_reversed:
            spans = [(min(span), max(span)) for span in spans]
        if not spans:
            return 0.0, 0.0, 1.0
        if self.iou == "union":
            iou = union_iou(spans, references)
            return iou, iou, 0.0
        span = pick_span(spans, self.pick)
        plain: Callable[[Span, Span], float] = set_iou if self.iou == "set" else hull_iou
        iou = max(plain(span, reference) for reference in references)
        if self.iou != "timestamp_aware":
            return iou, iou, 0.0
        duration = float(prompt.target["duration"])
        return max(timestamp_aware_iou(span, reference, duration) for reference in references), iou, 0.0
