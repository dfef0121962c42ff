"""Charades-STA: sentences about home videos of half a minute, each with its part of the video."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from grpo_mm.datasets.shared.checked_fields import take_duration, take_text
from grpo_mm.datasets.shared.files import check_file
from grpo_mm.datasets.video.grounding import GroundingPrompts, GroundingRow, timestamped_sentences
from grpo_mm.errors import ConfigError

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

    def _rows(self) -> Iterator[GroundingRow]:
        if self.path.endswith(".json"):
            yield from timestamped_sentences(self.path, "charades")
            return
        durations = {} if self.lengths is None else read_lengths(self.lengths)
        sentences_of: dict[str, int] = {}
        with open(self.path, encoding="utf-8-sig") as file:
            for line_number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{self.path}, line {line_number}"
                match = LINE.fullmatch(line.strip())
                if match is None:
                    raise ConfigError(f"{where}: found {line.strip()!r:.200}, wanted 'video start end##sentence'.")
                video, start, end, sentence = match.groups()
                if durations and video not in durations:
                    raise ConfigError(f"{where}: {self.lengths} has no length of {video}.")
                number = sentences_of.setdefault(video, 0)
                sentences_of[video] += 1
                query = take_text({"sentence": sentence}, "sentence", where)
                span = (float(start), float(end))
                yield GroundingRow(where, f"charades/{video}/{number}", video, query, (span,), durations.get(video))


def read_lengths(path: str) -> dict[str, float]:
    """Video → seconds, from a table with the columns id and length."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        durations = {}
        for row in csv.DictReader(file):
            try:
                durations[row["id"]] = take_duration(float(row["length"]), path)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{path}: wanted the columns id and length (seconds), found {row!r:.200}.") from error
        return durations
