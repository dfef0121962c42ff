"""Tiny random checkpoints of the families whose text encoder is a language model, made of the real classes."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import randomise

SHIFT = dict(
    use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
    shift=1.0, shift_terminal=0.02,
)  # fmt: skip


def build_qwen_image(folder: Path, *, layers: int = 2) -> Path:
    """A QwenImagePipeline; its decoder has a frame axis, as the released one."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    from grpo_mm.pipelines.zoo import vision_language

    torch.manual_seed(0)
    reader, processor = vision_language.untrained(dim=32, layers=2, vision_dim=32, vision_layers=1)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=layers, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[-0.7, 0.1, 0.9, -0.3], latents_std=[2.8, 1.4, 2.3, 1.2],
    )  # fmt: skip
    randomise(transformer)
    QwenImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT), vae=vae, text_encoder=reader,
        tokenizer=processor.tokenizer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


BUILDERS = {"qwen_image": build_qwen_image}
"""Kind of flow model -> what makes a checkpoint of it."""
