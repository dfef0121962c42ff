"""From a prompt with its pictures and videos to what the model sees: one context, made once, for all of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import UserError
from grpo_mm.outside import is_text, reason, shown
from grpo_mm.pipelines.vlm.models.family import Family
from grpo_mm.pipelines.vlm.prompting.chat import Chat, with_times
from grpo_mm.pipelines.vlm.prompting.open_media import are_ready, check_shape, is_video, open_media, whole_patch
from grpo_mm.pipelines.vlm.prompting.plain_text import spelled_out
from grpo_mm.types import Prompt

__all__ = ["Context", "Encoder", "PromptTooLong", "failed", "is_video", "open_media"]


@dataclass(frozen=True, eq=False)
class Context:
    """What the model sees before it answers. On the CPU; compared and hashed by identity.

    Example: "<|im_start|>user …" with a video of 8 frames of 28 × 56 pixels: 4 × 1 × 2 = 8 visual tokens. At two frames a
    second its clock stands at 0, 2, 4 and 6 (Qwen2.5-VL), so that text goes on 7 above what stood before the video.
    """

    prompt_id: str
    input_ids_L: Tensor
    """[L] int64, placeholders expanded: one for each visual token."""
    position_3L: Tensor
    """[3, L] int64, rotary positions by time, height and width; the only ones used, in sampling and in training."""
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """All else that the processor made: pixels, grids, time scale, token types."""
    failure: str = ""
    """Why the prompt cannot be put to the model; such a context is empty."""

    def __len__(self) -> int:
        return self.input_ids_L.shape[0]

    def response_positions(self, length: int) -> Tensor:
        """[3, length] positions of the tokens after the prompt, equal on the three axes: on from its last token, which is text.

        By the library's rule the clock of a long video may stand higher than the text after it.
        """
        start = int(self.position_3L[:, -1].max()) + 1 if len(self) else 0
        return torch.arange(start, start + length).expand(3, length)


class PromptTooLong(UserError):
    """A prompt that does not fit into `max_prompt_tokens`, with nothing that may be left out."""


@dataclass(frozen=True)
class Encoder:
    """Makes contexts with a model's processor and the rule of positions that the model follows."""

    processor: Any
    model: Any
    family: Family
    chat: Chat
    media: Any

    def __call__(self, prompt: Prompt, *, turn: AbstractContextManager[Any] | None = None) -> Context:
        """turn: held while the processor works, which serves one thread at a time; media are opened before.

        Raises PromptTooLong where `too_long` says so; unreadable media give a context with `failure`.
        """
        for text in (prompt.text, *(turn["content"] for turn in prompt.messages)):
            if not isinstance(text, str) or not is_text(text):
                return failed(prompt, f"its text is {shown(text)}, which no tokenizer reads.")
        try:
            loaded = [open_media(self.media, item) for item in prompt.media]
            with turn or nullcontext():
                return self._context(prompt, loaded)
        except PromptTooLong as error:
            if self.chat.too_long == "error":
                raise
            return failed(prompt, str(error))
        except UserError:
            raise
        except (ValueError, OSError) as error:
            return failed(prompt, reason(error, 1000))

    def _context(self, prompt: Prompt, loaded: list[Any]) -> Context:
        inputs = self._process(prompt, loaded)
        limit = self.chat.max_prompt_tokens
        if limit is not None and inputs["input_ids"].shape[1] > limit:
            inputs = self._shortened(prompt, loaded, tokens=inputs["input_ids"].shape[1], limit=limit)
        position_3L = self.family.positions(self.model, inputs)
        self._check_positions(position_3L)
        rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        return Context(prompt.id, inputs["input_ids"][0], position_3L, rest)

    def _process(self, prompt: Prompt, loaded: list[Any]) -> dict[str, Tensor]:
        step = self.family.frames_a_step(self.model.config)
        videos = [item for item in loaded if hasattr(item, "frames_FCHW")]
        pictures = [item for item in loaded if not hasattr(item, "frames_FCHW")]
        kinds = ["video" if hasattr(item, "frames_FCHW") else "image" for item in loaded]
        why = self.family.refused_media(kinds, [len(video.frames_FCHW) for video in videos])
        if why:
            raise ValueError(f"prompt {prompt.id!r}: {why}.")
        turns, spelling = spelled_out(self.chat.messages(prompt, kinds), self.processor)
        if self.chat.frame_times is not None:
            cut = [_steps(video, step) for video in videos]
            turns = with_times(turns, [[float(s.time_F[0]) for s in steps] for steps in cut], self.chat.frame_times)
            videos = [step for steps in cut for step in steps]
        text, meant = self.processor.apply_chat_template(turns, add_generation_prompt=True), []
        if spelling is not None:
            text, meant = spelling.carried(text)
        given: dict[str, Any] = {"images": pictures} if pictures else {}
        if videos:
            given["videos"] = [whole_patch(torch.as_tensor(video.frames_FCHW), step) for video in videos]
            for frames_FCHW in given["videos"]:
                check_shape(frames_FCHW)
            metadata = [self.family.video_metadata(v.time_F, float(v.fps)) for v in videos]
            given["videos_kwargs"] = {
                "video_metadata": metadata, "do_sample_frames": False, "input_data_format": "channels_first",
                "return_metadata": True, **({"do_resize": False} if are_ready(self.media, prompt.media, self.family) else {}),
            }  # fmt: skip
        inputs = dict(self.processor(text=[text], return_tensors="pt", **given))
        inputs.pop("video_metadata", None)
        inputs = self.family.finished(inputs, self.model.config)
        if spelling is not None:
            inputs = spelling.spelled(inputs, meant, self.processor.tokenizer)
        self._check_counts(prompt, inputs)
        return inputs

    def _check_positions(self, position_3L: Tensor) -> None:
        """Rotary positions have no end, but what was learnt has."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and position_3L.numel() and int(position_3L.max()) >= most:
            raise ValueError(
                f"it has {position_3L.shape[-1]} tokens, at positions up to {int(position_3L.max())}; the checkpoint has {most} positions "
                "(max_position_embeddings). Lower the pixels or the frames of its media, or shorten its text"
            )

    def _check_counts(self, prompt: Prompt, inputs: Mapping[str, Tensor]) -> None:
        """Placeholders and feature rows agree in number."""
        config = self.model.config
        places = self.family.placeholders(config, inputs["input_ids"][0], inputs)
        for kind, wanted in self.family.visual_tokens(config, inputs).items():
            found = int(places[kind].sum())
            if found != wanted:
                raise ValueError(f"{found} {kind} placeholders for {wanted} visual tokens of prompt {prompt.id!r}.")

    def _shortened(self, prompt: Prompt, loaded: list[Any], *, tokens: int, limit: int) -> dict[str, Tensor]:
        """The inputs with as many frames of the videos, evenly spread over each clip, as the limit has room for.

        Raises:
            PromptTooLong: the fewest frames are too many still, or there is no video.
        """
        step = self.family.frames_a_step(self.model.config)

        def with_share(share: float) -> dict[str, Tensor]:
            """0: one step of the temporal grid of each video; 1: all frames. Tokens are nearly linear in it."""
            return self._process(prompt, [_thin(item, share, step=step) for item in loaded])

        inputs = with_share(0.0)
        least = inputs["input_ids"].shape[1]
        if least > limit:
            raise PromptTooLong(
                f"prompt {prompt.id!r} has {tokens} tokens, {least} with the fewest frames of its videos; "
                f"policy.chat.max_prompt_tokens is {limit}. Pictures and text are never cut: raise it, or lower the pixels of "
                "a picture or a frame (policy.image_pixels, policy.video_pixels)."
            )
        share = (limit - least) / (tokens - least)
        while share > 0.01:
            found = with_share(share)
            if found["input_ids"].shape[1] <= limit:
                return found
            share *= 0.9
        return inputs


def failed(prompt: Prompt, why: str) -> Context:
    """The empty context of a prompt that cannot be used."""
    empty = torch.zeros(0, dtype=torch.int64)
    return Context(prompt.id, empty, empty.expand(3, 0), failure=f"prompt {prompt.id!r}: {why}")


def _steps(video: Any, length: int) -> list[Any]:
    """A video as clips of `length` frames each, the last perhaps shorter."""
    frames_FCHW, time_F = torch.as_tensor(video.frames_FCHW), torch.as_tensor(video.time_F)
    pieces = zip(frames_FCHW.split(length), time_F.split(length), strict=True)
    return [_Sampled(frames, times, float(video.fps)) for frames, times in pieces]


@dataclass(frozen=True)
class _Sampled:
    frames_FCHW: Tensor
    time_F: Tensor
    fps: float


def _thin(item: Any, share: float, *, step: int) -> Any:
    """A video with the share of its frames beyond `step`, a multiple of it; the first frame stays, and the last if there
    are two. Pictures, and videos that are as short already, stay as they are."""
    if not hasattr(item, "frames_FCHW") or len(item.time_F) <= step:
        return item
    count = len(item.time_F)
    kept = step + int(share * (count - step)) // step * step
    index = torch.linspace(0, count - 1, kept).round().long()
    time_F = torch.as_tensor(item.time_F)[index]
    span = float(time_F[-1] - time_F[0])
    fps = (kept - 1) / span if span > 0 else float(item.fps)
    return _Sampled(torch.as_tensor(item.frames_FCHW)[index], time_F, fps)
