"""Is what the reasoning says about the pictures true? Sentence by sentence by a judge that sees them, or by rules on scenes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args

import torch
from torch import Tensor

from grpo_mm import registry
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rewards.faithfulness.consistency import question_text
from grpo_mm.rewards.faithfulness.scene_claims import can_check, check_claims
from grpo_mm.rewards.faithfulness.sentences import content_words, reasoning_and_answer, sentences, speaks_of_the_visible
from grpo_mm.rewards.judges.prompt_pictures import pictures_of
from grpo_mm.rewards.judges.verdicts import Query, quoted, verdict_request
from grpo_mm.rewards.judges.vlm import JUDGE_SECONDS
from grpo_mm.rewards.shared.prompt_target import target_of
from grpo_mm.rewards.spatial.box_coordinates import Coordinates
from grpo_mm.types import Prompt

logger = logging.getLogger(__name__)

WORDS = ("correct", "incorrect", "skip")
PARTS = ("score", "claims", "skipped", "invalid")


def grounding_query(
    question: str, before: str, sentence: str, pictures: tuple[Tensor, ...], *, scale: str, max_chars: int = 4000
) -> Query:
    """Asks a judge that sees the pictures about one sentence of a reasoning.

    Args:
        scale: what the coordinates of boxes are, in words: the judge's own may be others.

    Source: arXiv:2604.08476 (Faithful GRPO), R_S: the criteria are the paper's, the words are ours. Grade B. Uncertain: the
    text counts a repeated claim as incorrect, the printed prompt as skip if it is correct. Here the prompt.
    """
    text = f"""A model was asked a question about the pictures above and thought aloud. Check one sentence of its thoughts against the pictures.

correct: everything that the sentence says or takes for granted about the pictures holds: the things are there, with these attributes, in these places to each other; a box holds what it is said to hold; with several pictures, it is the right one.
incorrect: some of it does not hold.
skip: the sentence says nothing that the pictures could show, or only repeats a correct statement from the sentences before it.
Boxes are [left, top, right, bottom] in {scale}.

Question:
{quoted(question, max_chars=max_chars)}

Sentences before it:
{quoted(before, max_chars=max_chars)}

Sentence to check:
{quoted(sentence, max_chars=max_chars)}

{verdict_request(WORDS)}"""
    return Query(text, WORDS, pictures)


@dataclass
class SemanticGrounding:
    """score = correct / (correct + incorrect) claims of the reasoning, in [0, 1]; NaN where none could be judged.

    With a judge a claim is a sentence that speaks of the visible; it is judged with the question, the pictures and all
    sentences before it. Without one, claims on coloured shapes (colour, direction, number, box) are checked by rules, each
    once; it then applies to prompts whose target names such things with their boxes, else to prompts with media.

    Parts: "claims" (correct + incorrect), "skipped" (judged to be no claim, or not told by the target), "invalid" (the judge
    gave no verdict). Text without an answer element is reasoning from end to end.

    Traps: NaN rows are left out of a plain weighted sum; under `lagrangian` only their constraint is masked. Saying nothing
    that can be checked is a way out: watch "claims".

    Source: arXiv:2604.08476 (Faithful GRPO), R_S. Grade B. Uncertain: a reasoning of which all was skipped; here NaN, as the
    specification asks. Deviates: at most `most_sentences` are judged. The rules are ours.
    """

    judge: Annotated[Any, Role("verdict")] | None = None
    """Sees pictures. None: rules."""
    media: Annotated[Any, Role("media")] = field(default_factory=lambda: registry.lookup("media", "frame_store")())
    """Opens the prompts' media for the judge."""
    most_frames: int = 8
    """Of one video."""
    most_sentences: int = 16
    """Of one text, from its beginning; the judge's calls of a step are at most this times the rows."""
    max_chars: int = 8000
    """Of a reasoning; what is beyond is not judged."""
    tag: str = "answer"
    """The element that holds the answer; the reasoning stands before it."""
    coordinates: Coordinates = "absolute"
    """Of boxes in the reasoning, see `box_coordinates`: of the model, not of the data."""

    def __post_init__(self) -> None:
        if min(self.most_frames, self.most_sentences, self.max_chars) < 1:
            raise ConfigError(
                f"semantic_grounding: most_frames = {self.most_frames}, most_sentences = {self.most_sentences}, max_chars = "
                f"{self.max_chars}; wanted 1 or more."
            )
        if self.coordinates not in get_args(Coordinates):
            raise ConfigError(f"coordinates = {self.coordinates!r}; wanted one of {', '.join(get_args(Coordinates))}.")
        self._warned = False

    @property
    def timeout_seconds(self) -> float | None:
        return None if self.judge is None else JUDGE_SECONDS

    def check(self) -> None:
        """Raises ConfigError if the judge cannot be asked."""
        if hasattr(self.judge, "check"):
            self.judge.check()

    @property
    def needs_device(self) -> bool:
        return bool(getattr(self.judge, "needs_device", hasattr(self.judge, "to")))

    def to(self, device: torch.device | str) -> SemanticGrounding:
        if hasattr(self.judge, "to"):
            self.judge.to(device)
        return self

    def applies_to(self, prompt: Prompt) -> bool:
        return can_check(prompt) if self.judge is None else bool(prompt.media)

    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """M texts -> score and parts, [M] each; NaN for a prompt to which it does not apply."""
        texts = [self._reasoning(text) for text in items]
        if self.judge is None:
            rows = [self._by_rules(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        else:
            rows = self._by_judge(texts, prompts)
        return dict(zip(PARTS, torch.tensor(rows, dtype=torch.float64).reshape(-1, len(PARTS)).T))

    def _reasoning(self, text: str) -> str:
        parts = reasoning_and_answer(text, tag=self.tag)
        return (text if parts is None else parts[0])[: self.max_chars]

    def _by_rules(self, text: str, prompt: Prompt) -> tuple[float, ...]:
        if not can_check(prompt):
            return (math.nan,) * len(PARTS)
        right, wrong, untold = check_claims(text, prompt, coordinates=self.coordinates)
        return _row(right, wrong, untold, 0)

    def _by_judge(self, texts: Sequence[str], prompts: Sequence[Prompt]) -> list[tuple[float, ...]]:
        judge: Any = self.judge
        seen: dict[str, tuple[Tensor, ...] | None] = {}
        queries: list[Query] = []
        rows: list[int] = []
        for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            if prompt.id not in seen:
                seen[prompt.id] = self._pictures(prompt)
            pictures = seen[prompt.id]
            if pictures:
                found = self._queries(text, prompt, pictures)
                queries += found
                rows += [row] * len(found)
        tally = [dict.fromkeys((*WORDS, None), 0) for _ in texts]
        for row, word in zip(rows, judge.verdicts(queries), strict=True):
            tally[row][word] += 1
        none = (math.nan,) * len(PARTS)
        return [
            _row(*(count[word] for word in (*WORDS, None))) if seen[prompt.id] else none
            for count, prompt in zip(tally, prompts)
        ]

    def _queries(self, text: str, prompt: Prompt, pictures: tuple[Tensor, ...]) -> list[Query]:
        question, said = question_text(prompt), sentences(text)
        asked = content_words(question)
        chosen = [i for i, sentence in enumerate(said) if speaks_of_the_visible(sentence, also=asked)]
        scale = self._scale(prompt, pictures[0])
        return [
            grounding_query(question, "\n".join(said[:i]), said[i], pictures, scale=scale)
            for i in chosen[: self.most_sentences]
        ]

    def _scale(self, prompt: Prompt, picture: Tensor) -> str:
        if self.coordinates != "absolute":
            return f"units in which the picture is {1 if self.coordinates == 'unit' else 1000} wide and high"
        target = target_of(prompt)
        height, width = (
            target.get(f"resized_{name}") or picture.shape[-2 + i] for i, name in enumerate(("height", "width"))
        )
        return f"pixels of a picture {width} wide and {height} high"

    def _pictures(self, prompt: Prompt) -> tuple[Tensor, ...] | None:
        """None where there are none, or they cannot be read."""
        try:
            return pictures_of(prompt, self.media, most=self.most_frames) or None
        except (ValueError, OSError) as error:
            if not self._warned:
                self._warned = True
                logger.warning("semantic_grounding: pictures of %r cannot be read (masked): %s", prompt.id, error)
            return None


def _row(correct: int, incorrect: int, skipped: int, invalid: int) -> tuple[float, ...]:
    claims = correct + incorrect
    return (correct / claims if claims else math.nan, claims, skipped, invalid)
