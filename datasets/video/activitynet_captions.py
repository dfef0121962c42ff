"""ActivityNet Captions: sentences that tell a video of a few minutes, each with its part of the video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grpo_mm.datasets.video.grounding import GroundingPrompts, GroundingRow, timestamped_sentences, videos_of


@dataclass
class ActivityNetCaptions(GroundingPrompts):
    """Reads {"v_abc": {"duration": 55.15, "timestamps": [[0, 4.14]], "sentences": [" Two men …"]}}, and takes the blanks
    off the sentences. Ids are "activitynet/v_abc/0".

    Source: arXiv:1705.00754. Grounding papers test on val_2 (17,031 sentences). Parts overlap, and published files hold
    inverted ones: use `unusable: drop` for training.
    """

    def _entries(self) -> Iterator[tuple[str, Any]]:
        return videos_of(self.path)

    def _row(self, row: tuple[str, Any], where: str, number: int) -> Iterator[GroundingRow]:
        return timestamped_sentences(*row, where, "activitynet")
