"""Prompts of all sources against the engine and the rewards of a run, before a model is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.media_words import MARKER, media_key
from grpo_mm.outside import is_text, reason, shown
from grpo_mm.types import Prompt

OURS = re.compile(r"<(image|video)>")
log = logging.getLogger(__name__)


def check_prompts(
    sources: Mapping[str, Sequence[Prompt]], scorers: Mapping[str, Any], *, shows_media: bool, engine: str
) -> None:
    """Looks at every prompt once.

    Args:
        scorers: name → what has `use` (a reward) and `sources`, as `Scorer`.
        shows_media: whether the engine shows prompts' pictures and videos to the model.
        engine: its name, for messages.

    Raises:
        ConfigError: a text that no tokenizer reads; pictures, videos or earlier turns that the engine would drop; a picture or
            video in a row or a marker in its text where the prompt shows none; a reward that cannot say whether it applies.
    """
    for source, prompts in sources.items():
        odd: list[str] = []
        for prompt in prompts:
            where = f"prompt {shown(prompt.id)} of {source!r}"
            _check_texts(prompt, where)
            if not shows_media:
                _check_dropped(prompt, where, engine)
            elif not prompt.media:
                _check_missing(prompt, where)
            elif not _fits(prompt):
                odd.append(prompt.id)
        if odd:
            log.warning(
                "%s: %d prompts have other markers <image> and <video> than pictures and videos (%s): these stand before the text, "
                "which keeps its markers as words", source, len(odd), ", ".join(map(shown, odd[:5])),
            )  # fmt: skip
        for name, scorer in scorers.items():
            if scorer.sources is None or source in scorer.sources:
                _check_applies(name, scorer.use, prompts, source)


def _check_texts(prompt: Prompt, where: str) -> None:
    for text in (prompt.text, *(turn["content"] for turn in prompt.messages)):
        if not isinstance(text, str) or not is_text(text):
            raise ConfigError(
                f"{where}: its text is {shown(text)}; wanted a text without halves of characters (lone surrogates)."
            )


def _check_dropped(prompt: Prompt, where: str, engine: str) -> None:
    dropped = "pictures or videos" if prompt.media else "earlier turns" if prompt.messages else ""
    if dropped:
        raise ConfigError(
            f"{where} has {dropped}, of which the engine {engine} would show the model nothing. Use other prompts, or an engine that "
            "shows them."
        )


def _check_missing(prompt: Prompt, where: str) -> None:
    if (key := media_key(prompt.target)) is not None:
        raise ConfigError(
            f"{where} has {shown(prompt.target[key], 80)} under {key!r}, which the model would not be shown: this reader shows no "
            "media. Use {kind: messages}, which shows pictures under 'images' and videos under 'videos', or take the key out."
        )
    texts = (prompt.text, *(turn["content"] for turn in prompt.messages if turn["role"] == "user"))
    found = next(filter(None, map(MARKER.search, texts)), None)
    if found:
        raise ConfigError(
            f"{where}: its text says {shown(found[0], 80)}, but no picture or video belongs to it. Use {{kind: messages}} with the "
            "media of each row, or take the marker out."
        )


def _fits(prompt: Prompt) -> bool:
    """Whether the questions have a marker for each of the media, in order, or none."""
    texts = [turn["content"] for turn in prompt.messages if turn["role"] == "user"]
    markers = OURS.findall("".join([*texts, prompt.text]))
    return not markers or markers == ["video" if _is_video(item) else "image" for item in prompt.media]


def _is_video(item: Any) -> bool:
    return bool(getattr(item, "is_video", hasattr(item, "frames_FCHW")))


def _check_applies(name: str, reward: Any, prompts: Sequence[Prompt], source: str) -> None:
    ruled = getattr(reward, "applies_to", None)
    if ruled is None:
        return
    for prompt in prompts:
        try:
            bool(ruled(prompt))
        except Exception as error:
            raise ConfigError(
                f"prompt {shown(prompt.id)} of {source!r}: {name} cannot say whether it applies ({reason(error)}): its target is "
                f"{shown(prompt.target)}. Leave this source out with {name}.sources, or use another reward or reader."
            ) from error
