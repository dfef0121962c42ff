"""What the plain model and processor say of a few prompts, as a user of the library asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_mm.pipelines.vlm.models.family import Family
from grpo_mm.processes.rng import stream
from grpo_mm.types import Prompt

LENGTH = 8
"""Tokens of an answer."""


@dataclass(frozen=True)
class Clip:
    """Frames as a media component gives them."""

    frames_FCHW: Tensor
    time_F: Tensor
    fps: float


def prompts_of_all_kinds(family: Family | None = None) -> tuple[Prompt, ...]:
    """Text alone, pictures of several sizes, clips of several speeds, both, so that rows differ in all that a row may have; of these,
    what the family's own library can show."""

    def pixels(frames: int, height: int, width: int) -> Tensor:
        size = (frames, 3, height, width)
        return torch.randint(0, 256, size, generator=stream(frames, "conform", height, width)).to(torch.uint8)

    def clip(frames: int, fps: float) -> Clip:
        return Clip(pixels(frames, 56, 84), torch.arange(frames, dtype=torch.float64) / fps, fps)

    still = pixels(1, 56, 84)[0]
    found = (
        Prompt("text", "one two three"),
        Prompt("picture", "what is red", media=(still,)),
        Prompt("two pictures", "which is red", media=(still, pixels(1, 84, 28)[0])),
        Prompt("clip", "When does it move", media=(clip(6, 1.0),)),
        Prompt("two clips", "which is longer", media=(clip(4, 2.0), clip(5, 1.0))),
        Prompt("clips alike", "which is quicker", media=(clip(4, 2.0), clip(4, 1.0))),
        Prompt("picture and clip", "is it in there", media=(still, clip(4, 2.0))),
    )
    return found if family is None else tuple(prompt for prompt in found if not _refused(family, prompt))


def left_out(family: Family) -> list[str]:
    """Those of all kinds that the library has no way to show, by name."""
    return [prompt.id for prompt in prompts_of_all_kinds() if _refused(family, prompt)]


def _refused(family: Family, prompt: Prompt) -> str:
    kinds = ["video" if isinstance(m, Clip) else "image" for m in prompt.media]
    return family.refused_media(kinds, [len(m.frames_FCHW) for m in prompt.media if isinstance(m, Clip)])


def plain_inputs(processor: Any, prompt: Prompt, *, time: str) -> dict[str, Any]:
    """As the model's page does it: the template's text, then pictures and clips.

    Args:
        time: how the family tells it, see `Family`.
    """
    from transformers.video_utils import VideoMetadata

    clips = [m for m in prompt.media if isinstance(m, Clip)]
    pictures = [m for m in prompt.media if not isinstance(m, Clip)]
    parts = [{"type": "video" if isinstance(m, Clip) else "image"} for m in prompt.media]
    turn = {"role": "user", "content": [*parts, {"type": "text", "text": prompt.text}]}
    given: dict[str, Any] = {"images": pictures} if pictures else {}
    if clips:
        even = [_even(clip.frames_FCHW) for clip in clips]
        stamped = time == "text"  # the processor writes times, which are index / fps
        metadata = [
            VideoMetadata(
                total_num_frames=len(c.time_F), fps=1.0 if stamped else c.fps,
                frames_indices=c.time_F.tolist() if stamped else list(range(len(c.time_F))),
            )
            for c in clips
        ]  # fmt: skip
        given |= {"videos": even, "videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False}}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    return {k: v for k, v in processor(text=[text], return_tensors="pt", **given).items() if isinstance(v, Tensor)}


def _even(frames_FCHW: Tensor) -> Tensor:
    """A patch spans two frames: an odd clip's last frame comes twice, as the processors do it themselves."""
    return torch.cat([frames_FCHW, frames_FCHW[-1:]]) if len(frames_FCHW) % 2 else frames_FCHW


@torch.no_grad()
def plain_logprobs(model: Any, plain: Mapping[str, Mapping[str, Any]], record: Any, forbidden: Sequence[int]) -> Tensor:
    """Log-probabilities of recorded answers, [N, A], each row alone, with positions that the model finds by itself.

    Args:
        plain: the inputs of each prompt, by its id.
        forbidden: tokens that have probability zero.
    """
    found_NA = torch.zeros(record.token_NA.shape)
    for i, length in enumerate(record.length_N.tolist()):
        inputs = plain[record.contexts[int(record.context_N[i])].prompt_id]
        token_T = record.token_NA[i, :length].cpu()
        ids = torch.cat([inputs["input_ids"][0], token_T])[None]
        rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in rest:
            rest["mm_token_type_ids"] = torch.cat(
                [rest["mm_token_type_ids"], torch.zeros(1, length, dtype=torch.int64)], 1
            )
        _forget_positions(model)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **rest}
        logits = model(**{k: v.to(model.device) for k, v in given.items()}).logits[0].float().cpu()
        logits[:, list(forbidden)] = -torch.inf
        found = logits.log_softmax(-1)[inputs["input_ids"].shape[1] - 1 : -1]
        found_NA[i, :length] = found.gather(-1, token_T[:, None])[:, 0]
    return found_NA


def _forget_positions(model: Any) -> None:
    """A model keeps where the last prompt's text went on."""
    for module in model.modules():
        if hasattr(module, "rope_deltas"):
            module.rope_deltas = None


@torch.no_grad()
def plain_answer(model: Any, processor: Any, inputs: Mapping[str, Any], forbidden: Sequence[int]) -> str:
    """Its most probable answer, without the tokens that are forbidden."""
    _forget_positions(model)
    given = {k: v.to(model.device) for k, v in inputs.items()}
    answer = model.generate(**given, do_sample=False, max_new_tokens=LENGTH, suppress_tokens=list(forbidden))
    tokens = answer[0, inputs["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, (list, tuple)) else [ends]), processor.tokenizer.eos_token_id}
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return processor.tokenizer.decode(tokens[:end])
