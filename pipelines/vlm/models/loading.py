"""A checkpoint folder of one of the families as model, processor and what its vocabulary says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.models.families import family_of, resolve
from grpo_mm.pipelines.vlm.models.family import Family
from grpo_mm.pipelines.zoo.random_weights import random_vision_language
from grpo_mm.weights.pretrained import check_chat, check_vocabulary, load_model, load_processor
from grpo_mm.weights.weight_files import refusing

RANDOM = "random:"
SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
SPECIAL_IDS = tuple(f"{kind}{end}_token_id" for kind in ("image", "video", "vision") for end in ("", "_start", "_end"))
Pixels = tuple[int, int]


@dataclass(frozen=True)
class Loaded:
    model: Any
    processor: Any
    family: Family
    forbidden: tuple[int, ...]
    """Tokens that are never sampled: what stands for visual features, and ids that the tokenizer has no text for."""
    stop: frozenset[int]
    """Tokens that end an answer."""
    end_of_turn: int
    """The one that the chat template puts after an answer."""


def load(
    path: str,
    *,
    dtype: torch.dtype,
    attention: str,
    image_pixels: Pixels | None = None,
    video_pixels: Pixels | None = None,
) -> Loaded:
    """Raises ConfigError for a checkpoint that cannot be loaded, or is of another family.

    "random:FORMAT/SIZE" has random weights of that size, for benchmarks. Its answers never end before their limit, so that
    every step has as much to do.
    """
    model, processor = _read(path, dtype=dtype, attention=attention)
    family = family_of(model.config.model_type, path=path)
    if "sliding_attention" in getattr(model.config.get_text_config(), "layer_types", ()):
        raise ConfigError(
            f"{path} attends to a sliding window, which is not supported: set use_sliding_window to false."
        )
    for part, pixels in ((processor.image_processor, image_pixels), (processor.video_processor, video_pixels)):
        if pixels is not None:
            part.size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    if getattr(processor.video_processor, "cap_pixels_per_frame", False) is None:
        processor.video_processor.cap_pixels_per_frame = False  # unset, it warns at every video
    tokenizer = processor.tokenizer
    known = tokenizer.get_vocab()
    config = model.config
    special = {known[name] for name in SPECIAL if name in known}
    special |= {token for name in SPECIAL_IDS if (token := getattr(config, name, None)) is not None}
    beyond = range(len(tokenizer), model.lm_head.weight.shape[0])
    end_of_turn = _end_of_turn(processor, path)
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
    ends |= {tokenizer.eos_token_id, end_of_turn}
    stop = frozenset() if path.startswith(RANDOM) else frozenset(int(end) for end in ends if end is not None)
    return Loaded(model, processor, family, tuple(sorted(special | set(beyond))), stop, end_of_turn)


def _read(path: str, *, dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    """(model, processor)"""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    if path.startswith(RANDOM):
        return random_vision_language(path.removeprefix(RANDOM), dtype, attention=attention)
    logging.disable_progress_bar()
    folder = resolve(path)
    model = load_model(AutoModelForImageTextToText, folder, dtype=dtype, attn_implementation=attention)
    processor = load_processor(AutoProcessor, folder, parts=("tokenizer", "image_processor", "video_processor"))
    check_vocabulary(processor.tokenizer, model, where=path)
    check_chat(processor, where=path, media=["image"])
    return model, processor


def _end_of_turn(processor: Any, path: str) -> int:
    """The token that follows an answer in the chat template."""
    asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    answer = "this is an answer"
    told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    with refusing(f"{path}: its chat template"):
        _, found, after = processor.apply_chat_template(told).rpartition(answer)
    if not found:
        raise ConfigError(f"{path}: its chat template leaves out the answer of a turn.")
    ids = processor.tokenizer(after, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError(f"the chat template of {path} puts nothing after an answer, so no answer would ever end.")
    return int(ids[0])
