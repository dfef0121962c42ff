"""Is the text that was asked for written in the clip? `ocr`, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.rewards.images.ocr import OcrReward
from grpo_mm.rewards.shared.clips import takes_clips
from grpo_mm.types import Clip, Prompt


@dataclass
class VideoOcr:
    """score = the mean of `ocr` over every fourth frame, the first among them. The parts are `best` (the frame that reads best) and
    `found`, the share of frames in which the text is there letter by letter.

    Text and reader are those of `ocr`; NaN where a prompt asks for no text.

    Source: video_ocr of Flow-GRPO (yifan123/flow_grpo), which reads every fourth frame. Deviates: RapidOCR, as `ocr`. The same frames
    for a clip of any rate; `frames` on an entry of `ocr` spreads a fixed number of them instead.
    """

    every: int = 4
    """Of so many frames one is read."""
    min_confidence: float = 0.5
    """Lines of which the recogniser is less sure are dropped."""
    threads: int = field(default=1, metadata=FREE)
    """CPU threads of the network."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"video_ocr: every = {self.every}; wanted at least 1.")
        self._ocr = OcrReward(self.min_confidence, self.threads)

    def check(self) -> None:
        """Raises ConfigError if RapidOCR or onnxruntime is missing."""
        self._ocr.check()

    def to(self, device: torch.device | str) -> VideoOcr:
        """Loads RapidOCR, which stays on the CPU."""
        self._ocr.to(device)
        return self

    @takes_clips
    def __call__(self, items: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """`Clips` and M prompts -> score, best, found, [M] each."""
        found = []
        for clip, prompt in zip(items, prompts):
            frames = clip.frames_FCHW[:: self.every]
            read = self._ocr(frames, [prompt] * len(frames))
            found.append((read["score"].mean(), read["score"].max(), read["found"].mean()))
        return dict(zip(("score", "best", "found"), torch.tensor(found, dtype=torch.float32).unbind(1)))
