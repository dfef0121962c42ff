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

        Media stand before the text, so that prompts on the same video share a prefix, or where the text has a marker
        <image> or <video> for each of them.
        """
        parts: list[dict[str, str]] = [{"type": kind} for kind in kinds]
        if kinds and MARKER.findall(prompt.text) == list(kinds):
            texts = MARKER.split(prompt.text)[::2]
            parts = [{"type": "text", "text": texts[0]}] if texts[0] else []
            for kind, text in zip(kinds, texts[1:], strict=True):
                parts += [{"type": kind}, {"type": "text", "text": text}] if text else [{"type": kind}]
        else:
            parts.append({"type": "text", "text": prompt.text})
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*opening, {"role": "user", "content": parts}]
