"""Models of real size with random weights, made on the spot: for benchmarks where no checkpoint can be had.

Of a flow pipeline the transformer and the decoder have the published sizes. The text encoders are one-layer stand-ins of the
right width, because a step encodes each prompt once and caches it. A vision-language model has them throughout; its tokenizer
is the zoo's, so only its few hundred tokens are drawn, from a distribution over the whole vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from grpo_mm.errors import UserError
from grpo_mm.pipelines.zoo.word_tokenizer import word_tokenizer

SD3_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd35_medium": dict(
        num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
    ),
    "sd3_width384": dict(num_layers=8, num_attention_heads=6, caption_projection_dim=384, pos_embed_max_size=96),
    "sd35_large": dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192),
}  # fmt: skip
"""From the models' published configurations; sd3_width384 is a small one for comparisons on a CPU."""

FLUX_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "flux_dev": dict(num_layers=19, num_single_layers=38, num_attention_heads=24, attention_head_dim=128)
}

VISION_LANGUAGE: dict[str, dict[str, Any]] = {
    "qwen2_5_vl/3b": dict(
        text=dict(
            vocab_size=151_936, hidden_size=2048, intermediate_size=11_008, num_hidden_layers=36, num_attention_heads=16,
            num_key_value_heads=2,
        ),
        vision=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, fullatt_block_indexes=[7, 15, 23, 31]),
        mrope_section=[16, 24, 24], tie_word_embeddings=True,
    ),
    "qwen2_5_vl/7b": dict(
        text=dict(
            vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
            num_key_value_heads=4,
        ),
        vision=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, fullatt_block_indexes=[7, 15, 23, 31]),
        mrope_section=[16, 24, 24], tie_word_embeddings=False,
    ),
    "qwen2_5_vl/width512": dict(
        text=dict(
            vocab_size=4096, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=2,
        ),
        vision=dict(depth=4, hidden_size=256, intermediate_size=768, num_heads=4, fullatt_block_indexes=[3]),
        mrope_section=[8, 12, 12], tie_word_embeddings=True,
    ),
    "qwen2_5_vl/tiny": dict(
        text=dict(
            vocab_size=1024, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1,
        ),
        vision=dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, fullatt_block_indexes=[1]),
        mrope_section=[4, 4, 4], tie_word_embeddings=True,
    ),
}  # fmt: skip
"""From the models' published configurations; `width512` and `tiny` are ours, for benchmarks on a CPU."""


def random_vision_language(name: str, dtype: torch.dtype, *, attention: str) -> tuple[Any, Any]:
    """(model, processor) of the named size, on the GPU if there is one.

    Raises:
        UserError: there is no such size.
    """
    from transformers import AutoModelForImageTextToText

    config, processor = vision_language_config(name)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    return model, processor


def vision_language_config(name: str) -> tuple[Any, Any]:
    """(config of the model, processor); frames keep the size that they come in."""
    from transformers import Qwen2_5_VLConfig

    from grpo_mm.pipelines.zoo.vision_language import untrained

    if name not in VISION_LANGUAGE:
        raise UserError(f"no size {name!r}; there are: {', '.join(VISION_LANGUAGE)}.")
    size = VISION_LANGUAGE[name]
    small, processor = untrained(dim=48, layers=1, vision_dim=32, vision_layers=1)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ends = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = Qwen2_5_VLConfig(
        text_config=size["text"] | {
            "max_position_embeddings": 128_000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": size["mrope_section"]},
        } | {key: getattr(small.config.text_config, key) for key in ends},
        vision_config=size["vision"] | {
            "out_hidden_size": size["text"]["hidden_size"], "patch_size": 14, "window_size": 112, "tokens_per_second": 2,
        },
        tie_word_embeddings=size["tie_word_embeddings"], **{key: getattr(small.config, key) for key in names},
    )  # fmt: skip
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16_384}
    return config, processor


def random_pipeline(name: str, dtype: torch.dtype) -> Any:
    """A diffusers pipeline of the named size, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name in SD3_TRANSFORMERS:
        return _sd3(SD3_TRANSFORMERS[name], device, dtype)
    if name in FLUX_TRANSFORMERS:
        return _flux(FLUX_TRANSFORMERS[name], device, dtype)
    raise UserError(f"no size {name!r}; there are: {', '.join([*SD3_TRANSFORMERS, *FLUX_TRANSFORMERS])}.")


def _sd3(size: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, attention_head_dim=64,
            joint_attention_dim=4096, pooled_projection_dim=2048, qk_norm="rms_norm", **size,
        )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=fill(transformer, device, dtype), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(device, scaling=1.5305, shift=0.0609),
        text_encoder=_clip(768, device, dtype, projected=True), tokenizer=_tokenizer(),
        text_encoder_2=_clip(1280, device, dtype, projected=True), tokenizer_2=_tokenizer(),
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def _flux(size: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=64, joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True,
            axes_dims_rope=(16, 56, 56), **size,
        )  # fmt: skip
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)] + [
        (c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz"
    ]
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(pieces), d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=4)
    )
    return FluxPipeline(
        transformer=fill(transformer, device, dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(device, scaling=0.3611, shift=0.1159),
        text_encoder=_clip(768, device, dtype, projected=False), tokenizer=_tokenizer(),
        text_encoder_2=encoder.to(device, dtype), tokenizer_2=T5Tokenizer(vocab=pieces, extra_ids=0),
    )  # fmt: skip


def fill(network: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Small random weights in place of a network built on the meta device."""
    network = network.to_empty(device=device).to(dtype)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.normal_(0, 0.02)
    return network


def _vae(device: str, *, scaling: float, shift: float) -> nn.Module:
    from diffusers import AutoencoderKL

    blocks = 4
    return AutoencoderKL(
        latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        scaling_factor=scaling, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
    ).to(device)  # fmt: skip


def _tokenizer() -> Any:
    return word_tokenizer(["a", "photo", "of"], max_length=77)


def _clip(width: int, device: str, dtype: torch.dtype, *, projected: bool) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size = len(_tokenizer())
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=width, projection_dim=width, num_hidden_layers=2,
        num_attention_heads=width // 64, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).to(device, dtype)
