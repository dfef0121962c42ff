"""Tiny random checkpoints in real formats; nothing downloads."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("a", "photo", "of", "red", "green", "blue", "circle", "square", "the", "and")


def clip_tokenizer(max_length: int = 77):
    from grpo_mm.pipelines.zoo.word_tokenizer import word_tokenizer

    return word_tokenizer(WORDS, max_length=max_length)


def clip_text(projection: int, *, with_projection: bool = True):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = len(clip_tokenizer())
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=projection, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config)


def t5(width: int):
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return T5EncoderModel(config), tokenizer


def vae(channels: int, *, scaling: float, shift: float):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=channels, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=scaling, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False, sample_size=16,
    )  # fmt: skip


def build_sd3(folder: Path, *, layers: int = 2, dual: int = 1) -> Path:
    """A StableDiffusion3Pipeline of a few ten thousand parameters, with all three encoders; `dual`: layers with two attentions."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    encoder_3, tokenizer_3 = t5(32)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=layers, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=16, dual_attention_layers=tuple(range(dual)), qk_norm="rms_norm",
    )  # fmt: skip
    randomise(transformer)
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, scaling=1.5305, shift=0.0609),
        text_encoder=clip_text(8), tokenizer=clip_tokenizer(), text_encoder_2=clip_text(8), tokenizer_2=clip_tokenizer(),
        text_encoder_3=encoder_3, tokenizer_3=tokenizer_3,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build_flux(folder: Path, *, layers: int = 1, single: int = 1) -> Path:
    """A FluxPipeline of a few ten thousand parameters, with guidance embedding (the dev format)."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    encoder_2, tokenizer_2 = t5(32)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=layers, num_single_layers=single, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    randomise(transformer)
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
        ),
        vae=vae(4, scaling=0.3611, shift=0.1159),
        text_encoder=clip_text(16, with_projection=False), tokenizer=clip_tokenizer(),
        text_encoder_2=encoder_2, tokenizer_2=tokenizer_2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def randomise(network: torch.nn.Module) -> None:
    """Zero-initialised output layers would make every velocity 0, and every test of it pass."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(0, 0.05)
