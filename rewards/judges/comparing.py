"""Judges: which of two pictures is better?"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.registry import Role
from grpo_mm.rewards.judges.unified_reward import (
    FLEX_CATEGORIES,
    clip_pair_question,
    edit_pair_question,
    flex_question,
    parse_flex,
    parse_think,
    think_question,
)
from grpo_mm.rewards.judges.vlm import Question, TransformersVlm, Vlm, answers_of
from grpo_mm.rewards.judges.vlm_server import ServerVlm
from grpo_mm.rollout.reward_use import as_reward
from grpo_mm.rollout.safe_call import score_safely
from grpo_mm.source_picture import source_of
from grpo_mm.types import Clip, Clips, Prompt, evenly, is_relative

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Two pictures, or two clips, for one prompt, in the order in which they are shown."""

    first: Any
    """uint8 [3, H, W], or a `Clip`."""
    second: Any
    prompt: Prompt


Verdict = Mapping[str, float]
"""1.0 where the first picture wins, 0.0 where the second does, 0.5 for a tie: "overall", and a category by its name.

Example: {"overall": 1.0, "alignment": 0.5, "quality": 1.0}. A name that is missing counts as a tie.
"""


class Judge(Protocol):
    """Also used where a judge has them: `categories` (names that it decides beside "overall"), `check()`, `to(device)`.

    The verdict on a pair must not depend on the other pairs: verdicts are kept and used again.
    """

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """A verdict for each pair; None where the comparison failed."""
        ...


@dataclass
class PointwiseJudge:
    """Turns a reward of single pictures into a judge: the higher score wins.

    Each picture is scored once a call, however many pairs it is in. A comparison with an unscored picture fails.
    """

    reward: Annotated[Any, Role("reward")]
    """What scores a single picture."""
    margin: float = 0.0
    """Scores that lie no further apart are a tie; in units of the reward."""

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ConfigError(f"pointwise judge: margin = {self.margin}, wanted 0 or more.")
        if is_relative(self.reward):
            raise ConfigError(
                "pointwise judge: its reward compares pictures itself; wanted one that scores each alone."
            )

    def check(self) -> None:
        """Raises ConfigError if the reward lacks a file or a package."""
        if hasattr(self.reward, "check"):
            self.reward.check()

    def to(self, device: torch.device | str) -> PointwiseJudge:
        if hasattr(self.reward, "to"):
            self.reward.to(device)
        return self

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        shown = {
            _key(image, pair.prompt): (image, pair.prompt) for pair in pairs for image in (pair.first, pair.second)
        }
        if not shown:
            return []
        images, prompts = zip(*shown.values())
        shown_items: Any = Clips(images) if isinstance(images[0], Clip) else torch.stack(images)
        scores, errors = score_safely(as_reward(self.reward), shown_items, prompts)
        if errors:
            _warn_once(errors[0])
        of = dict(zip(shown, scores["score"].double().tolist()))
        return [self._compare(of[_key(p.first, p.prompt)], of[_key(p.second, p.prompt)]) for p in pairs]

    def _compare(self, first: float, second: float) -> Verdict | None:
        if first != first or second != second:
            return None
        return {"overall": 0.5 if abs(first - second) <= self.margin else float(first > second)}


def _key(image: Tensor, prompt: Prompt) -> tuple[int, str, str]:
    return id(image), prompt.id, prompt.text


@functools.cache
def _warn_once(error: str) -> None:
    logger.warning("pointwise judge: the reward failed (such comparisons fail): %s", error)


CLIP_FRAMES = 8
"""Of each of two clips that a model is shown."""
Form = Literal["think", "flex", "edit", "clip"]
"""think: reasoning, then which is better (UnifiedReward-Think). flex: one winner per category and overall. edit: two edits beside the
picture that the prompt brings; clip: two clips by 8 frames of each; both in our own words with the answer of think."""


class ReadsPairs:
    """What a vision-language model needs to judge pairs; a model mixes it in and has the setting `form`."""

    form: Form

    @property
    def categories(self) -> tuple[str, ...]:
        return _categories(self.form)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        return judge_with(self, pairs, form=self.form)


@dataclass
class TransformersJudge(ReadsPairs, TransformersVlm):
    """A local vision-language model with UnifiedReward's questions and answers."""

    form: Form = "think"
    """think: one verdict after reasoning; flex: verdicts in categories as well; edit: of two edits, beside their source; clip: of two clips."""


@dataclass
class ServerJudge(ReadsPairs, ServerVlm):
    """A vision-language model behind a server, with UnifiedReward's questions and answers; how Pref-GRPO was run."""

    form: Form = "think"
    """think: one verdict after reasoning; flex: verdicts in categories as well; edit: of two edits, beside their source; clip: of two clips."""


def judge_with(vlm: Vlm, pairs: Sequence[Pair], *, form: Form) -> list[Verdict | None]:
    """Verdicts by a model's answers; None where it gave none, or one that decides nothing."""
    parse = parse_flex if form == "flex" else parse_think
    answers = answers_of(vlm, [_question(pair, form) for pair in pairs])
    verdicts = [parse(answer) for answer in answers]
    unread = [answer for answer, verdict in zip(answers, verdicts) if answer is not None and verdict is None]
    if unread:
        _warn_unread(unread[0][-200:])
    return verdicts


def _question(pair: Pair, form: Form) -> Question:
    """Raises UserError where an edit has no source, and for clips that are asked about as pictures are, or the other way round."""
    text = pair.prompt.text
    if isinstance(pair.first, Clip) != (form == "clip"):
        made = "clips" if isinstance(pair.first, Clip) else "pictures"
        wanted = "clip" if made == "clips" else "think, flex or edit"
        raise UserError(f"the judge compares {made} by form: {form}; wanted {wanted}.")
    if form == "clip":
        sides = (pair.first, pair.second)
        frames = [clip.frames_FCHW[evenly(len(clip.frames_FCHW), CLIP_FRAMES)].unbind() for clip in sides]
        shown = (len(frames[0]), len(frames[1]))
        lasts = (len(pair.first.frames_FCHW) / pair.first.fps, len(pair.second.frames_FCHW) / pair.second.fps)
        return Question(clip_pair_question(text, shown, lasts), (*frames[0], *frames[1]))
    if form == "edit":
        return Question(edit_pair_question(text), (source_of(pair.prompt), pair.first, pair.second))
    return Question(flex_question(text) if form == "flex" else think_question(text), (pair.first, pair.second))


_told: list[str] = []


def _warn_unread(end: str) -> None:
    """Once a process: every step would say it again."""
    if not _told:
        _told.append(end)
        logger.warning("a judge's answer decides nothing (such comparisons fail); it ends with: %r", end)


def _categories(form: Form) -> tuple[str, ...]:
    return FLEX_CATEGORIES if form == "flex" else ()
