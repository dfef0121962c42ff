"""ActivityNet Captions: sentences that tell a video of a few minutes, each with its part of the video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from grpo_mm.datasets.video.grounding import GroundingPrompts, GroundingRow, timestamped_sentences


@dataclass
class ActivityNetCaptions(GroundingPrompts):
    """Reads {"v_abc": {"duration": 55.15, "timestamps": [[0, 4.14]], "sentences": [" Two men …"]}}, and takes the blanks
    off the sentences. Ids are "activitynet/v_abc/0".

    Source: arXiv:1705.00754. Grounding papers test on val_2 (17,031 sentences). Parts overlap, and published files hold
    inverted ones: use `unusable: drop` for training.
    """

    def _rows(self) -> Iterator[GroundingRow]:
        yield from timestamped_sentences(self.path, "activitynet")
