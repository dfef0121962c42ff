"""Charades-STA: sentences about home videos of half a minute, each with its part of the video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from grpo_mm.datasets.shared.checked_fields import take_duration, take_span, take_text
from grpo_mm.datasets.shared.row_files import check_file, read_lines, read_rows
from grpo_mm.datasets.video.grounding import GroundingPrompts, GroundingRow, timestamped_sentences, videos_of
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

LINE = re.compile(r"(\S+)\s+(-?\d+(?:\.\d+)?)\s+(-?\d+(?:\.\d+)?)\s*##(.*)")


@dataclass
class CharadesSta(GroundingPrompts):
    """Reads the original text, lines "AO8RW 0.0 6.9##a person is putting a book on a shelf.", or the JSON form
    {"AO8RW": {"duration": 33.67, "timestamps": [[0.0, 6.9]], "sentences": ["a person …"]}}. Ids are "charades/AO8RW/0".

    Source: arXiv:1705.02101; 12,408 training and 3,720 test queries.
    """

    lengths: str | None = None
    """The text form says no durations; Charades' own table does (Charades_v1_test.csv, columns id and length)."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".json")

    def check(self) -> None:
        super().check()
        if self.lengths is not None:
            check_file(self.lengths, (".csv",))

    def _entries(self) -> Iterator[tuple[str, Any]]:
        if self.path.endswith(".json"):
            return videos_of(self.path)
        self._lengths = {} if self.lengths is None else read_lengths(self.lengths)
        self._sentences_of: dict[str, int] = {}
        return read_lines(self.path)

    def _row(self, row: Any, where: str, number: int) -> Iterator[GroundingRow]:
        if not isinstance(row, str):
            yield from timestamped_sentences(*row, where, "charades")
            return
        match = LINE.fullmatch(row.strip())
        if match is None:
            raise ConfigError(f"{where}: found {shown(row.strip())}, wanted 'video start end##sentence'.")
        video, start, end, sentence = match.groups()
        if self._lengths and video not in self._lengths:
            raise ConfigError(f"{where}: {self.lengths} has no length of {shown(video)}.")
        place = self._sentences_of.setdefault(video, 0)
        self._sentences_of[video] += 1
        query = take_text({"sentence": sentence}, "sentence", where)
        span = take_span([float(start), float(end)], where)
        yield GroundingRow(where, f"charades/{video}/{place}", video, query, (span,), self._lengths.get(video))


def read_lengths(path: str) -> dict[str, float]:
    """Video → seconds, from a table with the columns id and length."""
    durations: dict[str, float] = {}
    for where, row in read_rows(path):
        try:
            video, seconds = row["id"], float(row["length"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: wanted the columns id and length (seconds), found {shown(row)}.") from error
        if video in durations:
            raise ConfigError(f"{where}: the id {shown(video)} stands twice.")
        durations[video] = take_duration(seconds, where)
    return durations
