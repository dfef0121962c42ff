"""TimeLens: cleaned benchmarks of temporal grounding, and the rows that its models are trained on."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from grpo_mm.datasets.shared.checked_fields import (
    Span,
    take_duration,
    take_field,
    take_seconds,
    take_span,
    take_spans,
    take_text,
)
from grpo_mm.datasets.video.difficulty import draw_by_difficulty
from grpo_mm.datasets.video.grounding import GroundingPrompts, GroundingRow, timestamped_sentences, videos_of
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt

TEMPLATE = (
    "When in the video does this happen: {query}\n"
    "Give start and end in seconds, as 'The event happens in <start time> - <end time> seconds'."
)
DEMO_TEMPLATE = "The event happens in {start:.1f} - {end:.1f} seconds."
HEARD = ("hear", "heard", "hears", "hearing", "sound", "sounded", "sounds", "sounding", "audio")
"""Words of queries about what is heard; the frames do not show it."""


@dataclass
class TimeLensBench(GroundingPrompts):
    """Reads charades-timelens.json, activitynet-timelens.json and qvhighlights-timelens.json: {"3MSZA": {"duration": 30.96,
    "spans": [[24.3, 30.4]], "queries": ["…"]}}. Ids are "timelens_bench/3MSZA/0".

    Source: arXiv:2512.14698, code; grade A. The form of the answer is theirs, the words around it are ours.
    """

    template: str = TEMPLATE
    """The question as the model gets it: {query} is that of the row."""
    demo_template: str = DEMO_TEMPLATE
    """The demonstration: the right answer in the form that is asked for."""

    def _entries(self) -> Iterator[tuple[str, Any]]:
        return videos_of(self.path)

    def _row(self, row: tuple[str, Any], where: str, number: int) -> Iterator[GroundingRow]:
        for found in timestamped_sentences(*row, where, "timelens_bench", spans="spans", sentences="queries"):
            yield replace(found, query=plain_query(found.query))


@dataclass
class TimeLens100K(GroundingPrompts):
    """Reads timelens-100k.jsonl, rows {"video_path", "duration", "source", "events": [{"query", "span": [[s, e]]}]}, and the
    rows that measuring their difficulty leaves, {"video_path", "duration", "source", "query", "span", "iou"}. Ids are
    "timelens_100k/<row number>/<event number>".

    target adds "dataset", the `source` of the row, and "difficulty", its `iou`. Rows are dropped whose video is too short or too
    long, whose query has too many words or one of `without_words`, or whose spans do not lie inside the video.

    Source: arXiv:2512.14698, code; grade A. Deviates: all spans of a row have to lie inside, not one of them; spans of zero
    length are dropped; "sound," is the word "sound", where the code splits at blanks alone.
    """

    template: str = TEMPLATE
    """The question as the model gets it: {query} is that of the row."""
    demo_template: str = DEMO_TEMPLATE
    """The demonstration: the right answer in the form that is asked for."""
    unusable: Literal["keep", "drop"] = "drop"
    """drop: rows with spans that do not lie inside the video are left out and counted; keep: they stay."""
    max_overrun_seconds: float = 0.0
    """By how much a span may reach beyond the end of its video."""
    min_seconds: float | None = 5.0
    """Of a video; null for no bound, here and below."""
    max_seconds: float | None = 500.0
    """Length of a video, at most; null: no bound."""
    most_words: int | None = 200
    """Words of a query, at most; null: no bound."""
    without_words: list[str] = field(default_factory=lambda: list(HEARD))
    """Queries with one of these words, in lower case, are dropped; [] keeps them."""
    draw: int | None = None
    """So many rows, drawn by difficulty as `draw_by_difficulty` does (2,500 in the paper); the rows have to bring it. None: all."""
    draw_mean: float = 0.05
    """IoU of the model at which a row is likeliest to be drawn."""
    draw_std: float = 0.2
    """Width of that preference, in IoU."""
    draw_seed: int = 0
    """Of the draw."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json")

    def load(self) -> list[Prompt]:
        """As the other readers; raises ConfigError too if `draw` is set and a row has no difficulty, or one that is no IoU."""
        prompts = super().load()
        if self.draw is None:
            return prompts
        without = [prompt.id for prompt in prompts if "difficulty" not in prompt.target]
        if without:
            raise ConfigError(
                f"{self.path}: draw = {self.draw}, but {len(without)} rows have no 'iou' ({without[0]}, …). Give the file with the "
                "model's IoU on each row, or set draw: null."
            )
        iou_N = torch.tensor([prompt.target["difficulty"] for prompt in prompts], dtype=torch.float64)
        try:
            drawn = draw_by_difficulty(iou_N, self.draw, seed=self.draw_seed, mean=self.draw_mean, std=self.draw_std)
        except ValueError as error:
            raise ConfigError(f"{self.path}: draw = {self.draw}: {error}") from error
        return [prompts[i] for i in drawn.tolist()]

    def _row(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[GroundingRow]:
        events = row.get("events", [row])
        if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
            raise ConfigError(f"{where}: events are {shown(events)}, wanted a list of objects with query and span.")
        for place, event in enumerate(events):
            here = f"{where}, event {place}" if "events" in row else where
            target = {"dataset": row.get("source")}
            if event.get("iou") is not None:
                target["difficulty"] = take_seconds(event["iou"], "iou", here)
            yield GroundingRow(
                here,
                f"timelens_100k/{number}/{place}",
                take_text(row, "video_path", where),
                plain_query(take_text(event, "query", here)),
                _spans(event, here),
                take_duration(take_field(row, "duration", where), where),
                target=target,
            )

    def _problem(self, row: GroundingRow, path: str | None) -> str:
        duration = row.duration or 0.0
        if self.min_seconds is not None and duration < self.min_seconds:
            return f"shorter than {self.min_seconds:g} s"
        if self.max_seconds is not None and duration > self.max_seconds:
            return f"longer than {self.max_seconds:g} s"
        words = [word.strip(string.punctuation).lower() for word in row.query.split()]
        if self.most_words is not None and len(words) > self.most_words:
            return f"more than {self.most_words} words"
        if set(words) & set(self.without_words):
            return f"with one of the words {self.without_words[0]!r}, …"
        return super()._problem(row, path)


def plain_query(query: str) -> str:
    """One blank between words, no full stop at the ends."""
    return " ".join(query.split()).strip(".").strip()


def _spans(event: Mapping[str, Any], where: str) -> tuple[Span, ...]:
    """[s, e], or a list of them."""
    value = take_field(event, "span", where)
    nested = isinstance(value, list) and all(isinstance(item, list) for item in value)
    return take_spans(value, where) if nested else (take_span(value, where),)
