"""Supervised training of a small Qwen2.5-VL model on questions about pictures and clips, fast on one CPU thread.

The media of a batch are of one size. Causal attention needs no mask: nothing sees the padding on the right. A picture or
clip is encoded once for all its questions.

    U lessons   Q questions of a lesson   B = U · Q rows   L tokens   F frames   H W C picture   K patches   D patch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Lesson:
    """Example: Lesson(frames, (("When is the dog seen?<video>", "<answer>2.0 to 5.5</answer>"),), fps=2.0)"""

    frames_FHWC: np.ndarray
    """uint8; the one frame of a picture, or an even number."""
    asked: tuple[tuple[str, str], ...]
    """Questions and answers. The media stand where the question says <image> or <video>, else before it."""
    fps: float | None = None
    """Of a clip; None: a picture."""

    @property
    def kind(self) -> str:
        return "image" if self.fps is None else "video"

    def chat(self, question: str) -> list[dict[str, Any]]:
        before, marker, after = question.rpartition(f"<{self.kind}>")
        texts = [{"type": "text", "text": text} for text in (before, after)]
        return [{"role": "user", "content": [texts[0], {"type": self.kind}, texts[1]]}]


@dataclass(frozen=True)
class Batch:
    ids_BL: Tensor
    labels_BL: Tensor
    """The next token where it belongs to an answer, else IGNORED."""
    position_3BL: Tensor
    patches_UKD: Tensor
    grid_U3: Tensor
    kind: str

    def losses(self, model: Any) -> Tensor:
        """Negative log-likelihood of the answer tokens, in the order of `labels_BL != IGNORED`."""
        lessons, rows = len(self.patches_UKD), len(self.ids_BL)
        encode = model.model.get_image_features if self.kind == "image" else model.model.get_video_features
        seen = encode(self.patches_UKD.flatten(0, 1), self.grid_U3, return_dict=True)
        seen.pooler_output = [tokens for tokens in seen.pooler_output for _ in range(rows // lessons)]
        hidden_BLD = model.model(
            input_ids=self.ids_BL,
            position_ids=self.position_3BL,
            mm_encoder_outputs={self.kind: seen},
            use_cache=False,
        ).last_hidden_state
        is_answer_BL = self.labels_BL != IGNORED
        logits = model.lm_head(hidden_BLD[is_answer_BL])
        return torch.nn.functional.cross_entropy(logits, self.labels_BL[is_answer_BL], reduction="none")


def encode(lessons: Sequence[Lesson], model: Any, processor: Any) -> Batch:
    """What the processor and the chat template make of lessons with media of one size and as many questions each."""
    first, tokenizer = lessons[0], processor.tokenizer
    frames_UFHWC = torch.from_numpy(np.stack([lesson.frames_FHWC for lesson in lessons]))
    patches_UKD, grid_3 = _patches(frames_UFHWC, processor.video_processor)
    media_tokens = int(grid_3.prod()) // processor.video_processor.merge_size**2
    rows = [_tokens(lesson, pair, media_tokens, processor) for lesson in lessons for pair in lesson.asked]
    length = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    ids_BL = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels_BL = torch.full((len(rows), length), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        ids = torch.tensor(prompt + answer)
        ids_BL[row, : len(ids) - 1] = ids[:-1]
        labels_BL[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    seconds = processor.video_processor.temporal_patch_size / (first.fps or 1)
    return Batch(
        ids_BL, labels_BL, _positions(model, ids_BL, grid_3[None], first.kind, seconds),
        patches_UKD, grid_3.expand(len(lessons), 3), first.kind,
    )  # fmt: skip


def _patches(frames_UFHWC: Tensor, processor: Any) -> tuple[Tensor, Tensor]:
    """float32 [U, K, D] as the processors cut and scale them, and the grid (time, height, width)."""
    size, merge, temporal = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    if frames_UFHWC.shape[1] == 1:
        frames_UFHWC = frames_UFHWC.expand(-1, temporal, -1, -1, -1)
    rows, frames, height, width, channels = frames_UFHWC.shape
    time, down, across = frames // temporal, height // size, width // size
    cut = frames_UFHWC.reshape(rows, time, temporal, down // merge, merge, size, across // merge, merge, size, channels)
    # Time, block of patches to merge, patch within the block; then channel, frame, row and column of its pixels.
    patches = cut.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).reshape(rows, time * down * across, -1)
    return (patches.float() / 255 - processor.image_mean[0]) / processor.image_std[0], torch.tensor(
        [time, down, across]
    )


def _tokens(lesson: Lesson, pair: tuple[str, str], media_tokens: int, processor: Any) -> tuple[list[int], list[int]]:
    """Prompt and answer; the answer ends the turn."""
    question, answer = pair
    text = processor.apply_chat_template(lesson.chat(question), add_generation_prompt=True, tokenize=False)
    tokenizer, pad = processor.tokenizer, f"<|{lesson.kind}_pad|>"
    return tokenizer(text.replace(pad, pad * media_tokens)).input_ids, tokenizer(answer + tokenizer.eos_token).input_ids


def _positions(model: Any, ids_BL: Tensor, grid_13: Tensor, kind: str, seconds: float) -> Tensor:
    """[3, B, L]; rows whose media start at the same token share their positions."""
    is_media_BL = ids_BL == (model.config.image_token_id if kind == "image" else model.config.video_token_id)
    types_BL = is_media_BL.int() * (1 if kind == "image" else 2)
    position_3BL = torch.empty(3, *ids_BL.shape, dtype=torch.long)
    start_B = is_media_BL.int().argmax(dim=1)
    for start in start_B.unique():
        same = (start_B == start).nonzero()[:, 0]
        one = same[:1]
        position_31L, _ = model.model.get_rope_index(
            ids_BL[one], types_BL[one], second_per_grid_ts=torch.tensor([seconds]), **{f"{kind}_grid_thw": grid_13}
        )
        position_3BL[:, same] = position_31L
    return position_3BL


@torch.no_grad()
def answers(model: Any, processor: Any, lessons: Sequence[Lesson], *, batch: int = 64, **sampling: Any) -> list[str]:
    """What the model says to the first question of each lesson, by plain `generate`; greedy unless `sampling` tells.

    The lessons are all clips or all pictures.
    """
    found = []
    for start in range(0, len(lessons), batch):
        part = lessons[start : start + batch]
        chats = [lesson.chat(lesson.asked[0][0]) for lesson in part]
        texts = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        media = [torch.from_numpy(lesson.frames_FHWC).permute(0, 3, 1, 2) for lesson in part]
        if part[0].kind == "image":
            kwargs = {"images": [frames[0] for frames in media]}
        else:
            kwargs = {"videos": media, "video_metadata": [_metadata(lesson) for lesson in part]}
        inputs = processor(text=texts, padding=True, padding_side="left", return_tensors="pt", **kwargs)
        pads = [[model.config.image_token_id], [model.config.video_token_id]]
        ids_NL = model.generate(
            **inputs, **{"do_sample": False, "max_new_tokens": 128, "bad_words_ids": pads} | sampling
        )
        found += processor.batch_decode(ids_NL[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def _metadata(lesson: Lesson) -> Any:
    from transformers.video_utils import VideoMetadata

    count = len(lesson.frames_FHWC)
    return VideoMetadata(total_num_frames=count, fps=lesson.fps, frames_indices=list(range(count)))
