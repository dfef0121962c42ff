"""Is a stretch of a text followed at once by the same stretch? The repetition reward of GRIT."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.rewards.shared.named_scores import table
from grpo_mm.rewards.shared.networks import Tokens
from grpo_mm.types import Prompt


def adjacent_repetition(things: Sequence[Hashable], n: int) -> float:
    """Share of the places where n things are followed at once by the same n things, in [0, 1]; 0 for fewer than 2 n things.

    Of what is said again and again, that is seen whose length divides n: of n = 8 loops of 1, 2, 4 and 8 things, while one of
    5 or of 9 has no such place.
    """
    places = len(things) - 2 * n + 1
    if places <= 0:
        return 0.0
    repeats = run = 0
    for own, later in zip(things, things[n:]):
        run = run + 1 if own == later else 0
        repeats += run >= n
    return repeats / places


@dataclass
class Repetition(Tokens):
    """score = weight · (1 - share of words - share of tokens) by `adjacent_repetition`; from -weight to weight.

    It applies to every prompt, and is highest (`weight`) for a text without such places, an empty one as well. Parts: "words"
    and "tokens", the shares. Without a tokenizer words alone are read, and the score is at least 0.

    Trap: a loop whose length does not divide n costs nothing, see `adjacent_repetition`.

    Source: arXiv:2505.15879 (GRIT), repository. Grade A. Deviates: for words the repository counts n places more, which can
    never repeat; a text too short for tokens has all of the weight there, whatever its words.
    """

    weight: float = 0.5
    """The score of a text without repetition."""
    n: int = 8
    """Length of the pieces that are compared, in words and tokens."""
    tokenizer: str = ""
    """A folder in transformers' format, or a name on the hub; "" reads words between blanks only."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"n = {self.n}; wanted at least 1.")

    def applies_to(self, prompt: Prompt) -> bool:
        return True

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score, words and tokens, [M] each; of the prompts only their number is read."""
        return table([self._one(text) for text, _ in zip(items, prompts, strict=True)], ("score", "words", "tokens"))

    def _one(self, text: str) -> dict[str, float]:
        words = adjacent_repetition(text.split(), self.n)
        tokens = adjacent_repetition(self.token_ids(text) if self.tokenizer else (), self.n)
        return {"score": self.weight * (1 - words - tokens), "words": words, "tokens": tokens}
