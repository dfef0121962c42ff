"""QVHighlights: a sentence, the windows of a video that fit it, and how salient each two seconds are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from grpo_mm.datasets.shared.checked_fields import take_duration, take_field, take_spans, take_text
from grpo_mm.datasets.shared.row_check import take_id
from grpo_mm.datasets.video.grounding import GroundingPrompts, GroundingRow
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

CLIP_SECONDS = 2.0
NUM_CLIPS = 75
ANNOTATORS = 3
TOP_SCORE = 4


@dataclass
class QVHighlights(GroundingPrompts):
    """Reads highlight_*_release.jsonl. Ids are "qvhighlights/<qid>".

    target adds "saliency", 75 × 3 scores of 0..4 by three annotators, 0 for clips that are not listed, as the official
    scorer has it (75 whatever the duration), "clips", the numbers of the listed ones, and "qid". Rows of the test split
    have no labels.

    The names {times} and {scores} of `demo_template` are for highlight detection: where each listed clip starts, in
    seconds, and its mean score plus 1. How papers put them into the answer is not published: our choice.

    Source: arXiv:2107.09609.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl",)

    def _row(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[GroundingRow]:
        take_field(row, "qid", where)
        name = take_id(row, "qid", where)
        target: dict[str, Any] = {"qid": row["qid"]}
        words = {}
        if "saliency_scores" in row:
            clips, scores = _saliency(row, where)
            saliency = [[0] * ANNOTATORS for _ in range(NUM_CLIPS)]
            for clip, score in zip(clips, scores, strict=True):
                saliency[clip] = score
            target |= {"saliency": saliency, "clips": clips}
            words["times"] = ", ".join(f"{clip * CLIP_SECONDS:.1f}" for clip in clips)
            words["scores"] = ", ".join(f"{1 + sum(score) / ANNOTATORS:.1f}" for score in scores)
        yield GroundingRow(
            where,
            f"qvhighlights/{name}",
            take_text(row, "vid", where),
            take_text(row, "query", where),
            take_spans(row.get("relevant_windows", []), where),
            take_duration(take_field(row, "duration", where), where),
            target=target,
            words=words,
        )


def _saliency(row: Mapping[str, Any], where: str) -> tuple[list[int], list[list[int]]]:
    clips, scores = take_field(row, "relevant_clip_ids", where), row["saliency_scores"]
    fine = isinstance(clips, list) and isinstance(scores, list) and len(clips) == len(scores)
    if not fine or not all(type(clip) is int and 0 <= clip < NUM_CLIPS for clip in clips):
        raise ConfigError(f"{where}: wanted as many saliency_scores as relevant_clip_ids, numbers 0..{NUM_CLIPS - 1}.")
    for score in scores:
        if not isinstance(score, list) or len(score) != ANNOTATORS or not all(map(_is_score, score)):
            raise ConfigError(
                f"{where}: saliency {shown(score)}, wanted {ANNOTATORS} whole numbers from 0 to {TOP_SCORE}."
            )
    return clips, scores


def _is_score(value: Any) -> bool:
    return type(value) is int and 0 <= value <= TOP_SCORE
