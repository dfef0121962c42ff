"""Prompts of all sources against the engine and the rewards of a run, before a model is loaded."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.media_words import MARKER, media_key
from grpo_mm.outside import is_text, plain, reason, shown
from grpo_mm.types import Prompt

OURS = re.compile(r"<(image|video)>")
FIRST_FILES = 50
log = logging.getLogger(__name__)


def check_prompts(
    sources: Mapping[str, Sequence[Prompt]],
    scorers: Mapping[str, Any],
    *,
    shows_media: bool,
    engine: str,
    pictures: tuple[int, int] = (0, 0),
) -> None:
    """Looks at every prompt once.

    Args:
        scorers: name → what has `use` (a reward) and `sources`, as `Scorer`.
        shows_media: whether the engine shows prompts' pictures and videos to the model.
        engine: its name, for messages.
        pictures: how many pictures of a prompt the model is shown at least and at most, where it reads one text with them and no turns.

    Raises:
        ConfigError: a text that no tokenizer reads; fewer or more pictures than the model reads; pictures, videos or earlier turns that
            the engine would drop; a picture or video in a row or a marker in its text where the prompt shows none; a reward that cannot
            say whether it applies, or that judges beside a picture which a prompt does not bring.
    """
    for source, prompts in sources.items():
        odd: list[str] = []
        for prompt in prompts:
            where = f"prompt {shown(prompt.id)} of {source!r}"
            _check_texts(prompt, where)
            if pictures[1] and not shows_media:
                _check_pictures(prompt, where, pictures)
                odd += [prompt.id] if OURS.search(prompt.text) else []
            elif not shows_media:
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
                _check_source_pictures(name, scorer.use, prompts, source)
                _check_applies(name, scorer.use, prompts, source)


def check_first_files(sources: Mapping[str, Sequence[Prompt]]) -> None:
    """Raises ConfigError for a source of which not one of the first files of media is there: a wrong folder shows at once, before a
    model is loaded for rows that all fail."""
    for source, prompts in sources.items():
        items = (item for prompt in prompts for item in prompt.media)
        first = list(islice((i.path for i in items if isinstance(getattr(i, "path", None), str)), FIRST_FILES))
        if first and not any(map(os.path.exists, first)):
            raise _no_files(source, first)


def _no_files(source: str, first: Sequence[str]) -> ConfigError:
    folder = os.path.dirname(first[0]) or "."
    lacks = "" if os.path.isdir(folder) else f" There is no folder {plain(folder, 400)}."
    return ConfigError(
        f"prompts {source!r}: not one of the first {len(first)} pictures and videos is there, beginning with {plain(first[0], 400)} "
        f"(looked in {plain(os.path.abspath(folder), 400)}).{lacks} Set the reader's folder to where they lie."
    )


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
            f"{where} has {dropped}, of which the engine {engine} would show the model nothing. Use other prompts, or a model or engine "
            "that reads them (a policy.model.kind that edits, or that draws clips from a first frame); with {kind: table} a column of "
            "pictures is left out by `ignore`, or kept for rewards by `for_rewards`."
        )


def _check_pictures(prompt: Prompt, where: str, pictures: tuple[int, int]) -> None:
    why = media_refused(prompt, pictures)
    if prompt.messages:
        why = "it has earlier turns, which the model would not be shown"
    if why:
        raise ConfigError(
            f"{where} cannot be put to the model: {why}. Choose the policy's model kind to match, or other prompts; with {{kind: table}} a "
            "column of pictures is shown as `source_image` or `image`, left out by `ignore`, or kept for rewards by `for_rewards`."
        )


def media_refused(prompt: Prompt, pictures: tuple[int, int]) -> str:
    """Why a model that reads so many pictures of a prompt, at least and at most, cannot be asked this one; "" if it can."""
    least, most = pictures
    number = len(prompt.media)
    if any(map(_is_video, prompt.media)):
        return "it shows a video, of which the model sees nothing"
    if number < least:
        return (
            f"it shows {_pictures(number)}, and the model needs {_pictures(least, 'at least ' if most > least else '')}"
        )
    if number > most:
        return f"it shows {_pictures(number)}, and the model reads {_pictures(most, 'at most ' if most else '')}"
    return ""


def _pictures(number: int, before: str = "") -> str:
    return f"{before}{number or 'no'} picture{'' if number == 1 else 's'}"


def _check_missing(prompt: Prompt, where: str) -> None:
    if (key := media_key(prompt.target)) is not None:
        raise ConfigError(
            f"{where} has {shown(prompt.target[key], 80)} under {key!r}, which the model would not be shown: this reader shows no "
            "media. Use {kind: table}, which shows pictures and videos of any column, or take the key out."
        )
    texts = (prompt.text, *(turn["content"] for turn in prompt.messages if turn["role"] == "user"))
    found = next(filter(None, map(MARKER.search, texts)), None)
    if found:
        raise ConfigError(
            f"{where}: its text says {shown(found[0], 80)}, but no picture or video belongs to it. Use {{kind: table}} with the "
            "media of each row, or take the marker out."
        )


def _fits(prompt: Prompt) -> bool:
    """Whether the questions have a marker for each of the media, in order, or none."""
    texts = [turn["content"] for turn in prompt.messages if turn["role"] == "user"]
    markers = OURS.findall("".join([*texts, prompt.text]))
    return not markers or markers == ["video" if _is_video(item) else "image" for item in prompt.media]


def _is_video(item: Any) -> bool:
    return bool(getattr(item, "is_video", hasattr(item, "frames_FCHW")))


def _check_source_pictures(name: str, reward: Any, prompts: Sequence[Prompt], source: str) -> None:
    """A reward that looks at the picture of each prompt, and does not itself say which it applies to, finds one."""
    if not getattr(reward, "needs_source", False) or hasattr(reward, "applies_to"):
        return
    lacking = next((prompt for prompt in prompts if not prompt.media), None)
    if lacking is not None:
        raise ConfigError(
            f"prompt {shown(lacking.id)} of {source!r} brings no picture, and {name} judges what was made beside it. Leave this source out "
            f"with {name}.sources, or use another reward."
        )


def _check_applies(name: str, reward: Any, prompts: Sequence[Prompt], source: str) -> None:
    ruled = getattr(reward, "applies_to", None)
    if ruled is None:
        return
    if hasattr(reward, "ask_ahead"):  # it asks elsewhere, where many at once cost as much as one
        reward.ask_ahead(prompts)
    for prompt in prompts:
        try:
            bool(ruled(prompt))
        except Exception as error:
            raise ConfigError(
                f"prompt {shown(prompt.id)} of {source!r}: {name} cannot say whether it applies ({reason(error)}): its target is "
                f"{shown(prompt.target)}. Leave this source out with {name}.sources, or use another reward or reader."
            ) from error
