"""Published sizes of the families whose text encoder is a language model, by hub name; networks without numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from grpo_mm.pipelines.zoo.random_weights import vision_language_config


def _qwen_image() -> Any:
    """20.43 · 10⁹ weights in the transformer, 8.29 · 10⁹ in the text encoder. The tokenizer is the zoo's, of bytes: texts are counted as
    long as `text_length` lets them be."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLForConditionalGeneration

    config, processor = vision_language_config("qwen2_5_vl/7b")
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
        shift_terminal=0.02,
    )  # fmt: skip
    with torch.device("meta"):
        parts = {
            "transformer": QwenImageTransformer2DModel(
                patch_size=2, in_channels=64, out_channels=16, num_layers=60, attention_head_dim=128, num_attention_heads=24,
                joint_attention_dim=3584, axes_dims_rope=(16, 56, 56),
            ),
            "vae": AutoencoderKLQwenImage(),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        }  # fmt: skip
    return QwenImagePipeline(scheduler=scheduler, tokenizer=processor.tokenizer, **parts)


NAMED: dict[str, Callable[[], Any]] = {"Qwen/Qwen-Image": _qwen_image, "Qwen/Qwen-Image-2512": _qwen_image}
