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

    def check(self) -> None:
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ConfigError(f"policy.chat.max_prompt_tokens = {self.max_prompt_tokens}; wanted at least 1, or null.")

    def messages(self, prompt: Prompt, kinds: Sequence[str]) -> list[dict[str, Any]]:
        """The conversation so far; `kinds` are "image" or "video", one for each of the prompt's media, in order.

        Media stand before the first question, so that prompts on the same video share a prefix, or where the turns have a
        marker <image> or <video> for each of them. A system turn of the prompt's own takes the place of `system`.
        """
        turns = [*prompt.messages, {"role": "user", "content": prompt.text}]
        marked = bool(kinds) and [kind for turn in turns for kind in MARKER.findall(turn["content"])] == list(kinds)
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


def _at_markers(text: str) -> list[dict[str, str]]:
    """Texts and media of one turn, in order."""
    texts, kinds = MARKER.split(text)[::2], MARKER.findall(text)
    parts = [{"type": "text", "text": texts[0]}] if texts[0] else []
    for kind, after in zip(kinds, texts[1:], strict=True):
        parts += [{"type": kind}, {"type": "text", "text": after}] if after else [{"type": kind}]
    return parts
