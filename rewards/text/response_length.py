"""Is a text neither too short nor too long? A plain band, the input of Video-R1's length bonus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.shared.networks import Tokens
from grpo_mm.types import Prompt


def in_band(length: float, *, low: float, high: float) -> float:
    """1 if low <= length <= high, else 0."""
    return float(low <= length <= high)


@dataclass
class ResponseLength(Tokens):
    """score = 1 if a text has from `low` to `high` tokens, else 0; part "length". It applies to every prompt.

    Video-R1 adds 0.2 to correct responses in the band, where the group has more than one correct: this is the band alone,
    what is correct and how many are is for the stages that see accuracy and groups.

    Trap: tokens are counted on the finished text. Tokenised again it may differ by a few from what was sampled, and special
    tokens do not count; so it fits a band, not a limit.

    Source: arXiv:2503.21776 (Video-R1), 320 to 512 tokens. Grade A.
    """

    low: int = 320
    """Tokens or words, at least."""
    high: int = 512
    """Tokens or words, at most."""
    tokenizer: str = ""
    """A folder in transformers' format, or a name on the hub; "" counts words between blanks."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"low = {self.low}, high = {self.high}; wanted 0 <= low <= high.")

    def applies_to(self, prompt: Prompt) -> bool:
        return True

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and length, [M] each; of the prompts only their number is read."""
        lengths = [self.length(text) for text, _ in zip(items, prompts, strict=True)]
        scores = [in_band(length, low=self.low, high=self.high) for length in lengths]
        return {"score": torch.tensor(scores), "length": torch.tensor(lengths, dtype=torch.float32)}

    def length(self, text: str) -> int:
        return len(self.token_ids(text) if self.tokenizer else text.split())
