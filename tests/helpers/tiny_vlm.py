"""Random vision-language checkpoints of all families, prompts with pictures and clips, and a slow obvious forward."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from newer_vlm import MAKERS
from torch import Tensor

from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.policy import VlmPolicy, VlmPolicyConfig
from grpo_mm.processes.rng import stream
from grpo_mm.types import Prompt, Rows
from grpo_mm.weights.pieces import full, put

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_FOLDERS: dict[str, str] = {}


@dataclass(frozen=True)
class Clip:
    """Frames as a media component gives them."""

    frames_FCHW: Tensor
    time_F: Tensor
    fps: float


def clip(frames: int = 6, *, fps: float = 1.0, height: int = 28, width: int = 56, seed: int = 0) -> Clip:
    size = (frames, 3, height, width)
    pixels = torch.randint(0, 256, size, generator=stream(seed, "clip"), dtype=torch.int64).to(torch.uint8)
    return Clip(pixels, torch.arange(frames, dtype=torch.float64) / fps, fps)


def picture(height: int = 28, width: int = 28, seed: int = 0) -> Tensor:
    return clip(1, height=height, width=width, seed=seed).frames_FCHW[0]


PROMPTS = (
    Prompt("picture", "what shape is in the picture", media=(picture(),)),
    Prompt("pictures", "which picture is red", media=(picture(56, 28, seed=1), picture(28, 84, seed=2))),
    Prompt("slow clip", "When does the red circle appear in the video", media=(clip(6, fps=1.0),)),
    Prompt("fast clip", "start to end", media=(clip(5, fps=3.0, seed=3),)),
    Prompt("both", "is <image> in <video> there", media=(picture(seed=4), clip(4, fps=0.5, seed=5))),
    Prompt("text", "one two three"),
)
"""One of each kind: odd numbers of frames, steps of time above and below 1, lengths that differ."""


def folder(family: str) -> str:
    """The folder of a random checkpoint, made once in a session."""
    if family not in _FOLDERS:
        import tempfile

        _FOLDERS[family] = str(build(family, Path(tempfile.mkdtemp()) / family))
    return _FOLDERS[family]


def build(family: str, path: Path) -> Path:
    """A model of a few ten thousand parameters with the zoo's tokenizer; its logits are not flat."""
    from grpo_mm.pipelines.zoo import vision_language

    zoo, processor = vision_language.untrained(dim=32, layers=1, vision_dim=32, vision_layers=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family in MAKERS:
            model, processor = MAKERS[family](_text(zoo.config), _tokens(zoo.config), processor)
        else:
            model, processor = _OLDER[family](zoo.config, processor)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    with torch.no_grad():  # biases and norms start at 0 and 1, where a mistake may hide
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream(0, "tiny_vlm", name)))
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def _tokens(config: Any) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(config, name) for name in names} | {"tie_word_embeddings": True}


def _text(config: Any, **rope: Any) -> dict[str, Any]:
    return dict(
        vocab_size=config.text_config.vocab_size, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [6, 5, 5], **rope},
        eos_token_id=config.text_config.eos_token_id, pad_token_id=config.text_config.pad_token_id,
    )  # fmt: skip


def _qwen2(config: Any, processor: Any) -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    vision = dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2, initializer_range=0.2)
    settings = Qwen2VLConfig(text_config=_text(config), vision_config=vision, **_tokens(config))
    parts = {name: getattr(processor, name) for name in ("image_processor", "video_processor", "tokenizer")}
    return Qwen2VLForConditionalGeneration(settings), Qwen2VLProcessor(**parts, chat_template=processor.chat_template)


def _qwen2_5(config: Any, processor: Any) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = dict(
        depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64, fullatt_block_indexes=[1],
        window_size=56, tokens_per_second=2, initializer_range=0.2,
    )  # fmt: skip
    settings = Qwen2_5_VLConfig(text_config=_text(config), vision_config=vision, **_tokens(config))
    return Qwen2_5_VLForConditionalGeneration(settings), processor


def _qwen3(config: Any, processor: Any) -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    vision = dict(
        depth=3, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64, num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1], initializer_range=0.2, patch_size=14,
    )  # fmt: skip
    text = _text(config, mrope_interleaved=True) | {"head_dim": 32}
    settings = Qwen3VLConfig(text_config=text, vision_config=vision, **_tokens(config))
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 256}
    return Qwen3VLForConditionalGeneration(settings), Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=14),
        video_processor=Qwen3VLVideoProcessor(size=size, patch_size=14),
        tokenizer=processor.tokenizer,
        chat_template=processor.chat_template,
    )


_OLDER = {"qwen2_vl": _qwen2, "qwen2_5_vl": _qwen2_5, "qwen3_vl": _qwen3}


def policy(family: str = "qwen2_5_vl", *, shard: Any = None, sequence: Any = None, **settings: Any) -> VlmPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VlmPolicyConfig(path=folder(family), **settings).load(
            torch.device("cpu"), shard=shard, sequence=sequence
        )


def rows_of(prompts: tuple[Prompt, ...], group_size: int) -> Rows:
    number = len(prompts)
    return Rows(
        prompts,
        torch.arange(number).repeat_interleave(group_size),
        torch.arange(group_size).repeat(number),
        group_size,
    )


def sample(policy: VlmPolicy, prompts: tuple[Prompt, ...] = PROMPTS, *, group_size: int = 3, **engine: Any):
    """A rollout and its outputs."""
    settings = {"max_new_tokens": 8, **engine}
    return VlmEngine(**settings).sample(policy, rows_of(prompts, group_size), step=0, seed=0, needs=frozenset())


def change(policy: VlmPolicy, *, scale: float = 0.1, seed: int = 1) -> None:
    """Moves all trainable weights, as training would."""
    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            put(
                parameter,
                full(parameter) + scale * torch.randn(parameter.shape, generator=stream(seed, "change", name)),
            )


def library_logprobs(model: Any, policy: VlmPolicy, context: Any, tokens: Tensor) -> Tensor:
    """Log-probabilities of an answer [T] by the plain model on one row, with positions that it finds by itself."""
    ids = torch.cat([context.input_ids_L, tokens])[None]
    types = torch.cat([context.inputs["mm_token_type_ids"], torch.zeros(1, len(tokens), dtype=torch.int64)], dim=1)
    given = {k: v for k, v in context.inputs.items() if k != "mm_token_type_ids"}
    if policy.loaded.family.time != "seconds_per_grid":
        given.pop("second_per_grid_ts", None)
    model.model.rope_deltas = None
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=types, attention_mask=torch.ones_like(ids), **given).logits[0]
    logits[:, list(policy.loaded.forbidden)] = -torch.inf
    found = (logits.float() / policy.config.temperature).log_softmax(-1)
    return found[len(context) - 1 : -1].gather(-1, tokens[:, None])[:, 0]


each_family = pytest.mark.parametrize("family", FAMILIES)
