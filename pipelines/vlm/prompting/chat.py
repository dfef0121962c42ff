"""How a prompt is put into words: the conversation, and what pictures and videos have to offer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.types import Prompt

MARKER = re.compile(r"<(image|video)>")


class VideoFrames(Protocol):
    """Sampled frames of a video, as the media component gives them."""

    frames_FCHW: Tensor
    """uint8 [F, 3, H, W]."""
    time_F: Tensor
    """[F] seconds."""
    fps: float
    """Of the sampled frames."""


class Media(Protocol):
    """Opens what stands in `Prompt.media`: gives a picture (PIL, or uint8 [3, H, W]) or `VideoFrames`, which also stay as
    they are.

    Raises ValueError or OSError for what cannot be read: a failed prompt, not the end of the run.
    """

    def load(self, item: Any) -> Any: ...


@dataclass(frozen=True)
class Chat:
    """How a prompt is put to the model."""

    system: str | None = None
    """None: what the model's chat template does by itself."""
    max_prompt_tokens: int | None = None
    """Longer prompts lose frames of their videos until they fit, never single visual tokens."""
    too_long: Literal["error", "skip"] = "error"
    """What becomes of a prompt that does not fit without a video to shorten. skip: its rows fail, and are counted."""
    frame_times: str | None = None
    """Text before each step of a video's temporal grid, "{seconds:.1f}s" for instance, with the time of its first frame; null:
    as the family does it. Qwen2-VL and Qwen2.5-VL then read a video as short ones with times between (TimeLens,
    arXiv:2512.14698, which prints neither the form nor which of the two frames tells the time)."""

    def check(self) -> None:
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ConfigError(f"policy.chat.max_prompt_tokens = {self.max_prompt_tokens}; wanted at least 1, or null.")
        if self.frame_times is not None:
            try:
                told = {self.frame_times.format(seconds=seconds) for seconds in (0.0, 60.0)}
            except (LookupError, ValueError) as error:
                raise ConfigError(
                    f'policy.chat.frame_times = {self.frame_times!r}: {error}; wanted a form such as "{{seconds:.1f}}s".'
                ) from error
            if len(told) < 2:
                raise ConfigError(f"policy.chat.frame_times = {self.frame_times!r} does not tell {{seconds}}.")

    def messages(self, prompt: Prompt, kinds: Sequence[str]) -> list[dict[str, Any]]:
        """The conversation so far; `kinds` are "image" or "video", one for each of the prompt's media, in order.

        Media stand before the first question, so that prompts on the same video share a prefix, or where the users' turns have
        a marker <image> or <video> for each of them; what others said stays as it is. A system turn of the prompt's own takes
        the place of `system`.
        """
        turns = [*prompt.messages, {"role": "user", "content": prompt.text}]
        asked = [turn["content"] for turn in turns if turn["role"] == "user"]
        marked = bool(kinds) and [kind for text in asked for kind in MARKER.findall(text)] == list(kinds)
        before_text = [] if marked else [{"type": kind} for kind in kinds]
        found: list[dict[str, Any]] = []
        if self.system is not None and turns[0]["role"] != "system":
            found.append({"role": "system", "content": self.system})
        for turn in turns:
            if turn["role"] != "user":
                found.append(dict(turn))
                continue
            parts = _at_markers(turn["content"]) if marked else [{"type": "text", "text": turn["content"]}]
            found.append({"role": "user", "content": [*before_text, *parts]})
            before_text = []
        return found


def with_times(
    turns: Sequence[dict[str, Any]], seconds_of: Sequence[Sequence[float]], form: str
) -> list[dict[str, Any]]:
    """The conversation with each video as several, a text with its time before each; `seconds_of` has one list a video."""
    left = iter(seconds_of)

    def pieces(part: dict[str, Any]) -> list[dict[str, Any]]:
        if part["type"] != "video":
            return [part]
        times = next(left)
        return [p for s in times for p in ({"type": "text", "text": form.format(seconds=s)}, {"type": "video"})]

    return [
        turn
        if isinstance(turn["content"], str)
        else turn | {"content": [p for part in turn["content"] for p in pieces(part)]}
        for turn in turns
    ]


OPENED = re.compile(r"<[A-Za-z][\w-]{0,30}>\s*\Z")


def opened_by_template(processor: Any) -> str:
    """The tag that a chat template opens at the end of every prompt, with what follows it ("<think>\\n"); "" if it opens none.

    An answer then goes on within that element, and its own text never opens it: what reads answers is given this before it.
    """
    asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    found = OPENED.search(processor.apply_chat_template(asked, add_generation_prompt=True))
    return found[0] if found else ""


def _at_markers(text: str) -> list[dict[str, str]]:
    """Texts and media of one turn, in order."""
    texts, kinds = MARKER.split(text)[::2], MARKER.findall(text)
    parts = [{"type": "text", "text": texts[0]}] if texts[0] else []
    for kind, after in zip(kinds, texts[1:], strict=True):
        parts += [{"type": kind}, {"type": "text", "text": after}] if after else [{"type": kind}]
    return parts
