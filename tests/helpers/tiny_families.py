"""Tiny random checkpoints of the families whose text encoder is a language model, made of the real classes."""

from __future__ import annotations

from pathlib import Path

import torch
from newer_pictures import NEWER
from tiny_models import WORDS, randomise, vae

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
    decoder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[-0.7, 0.1, 0.9, -0.3], latents_std=[2.8, 1.4, 2.3, 1.2],
    )  # fmt: skip
    randomise(transformer)
    QwenImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT), vae=decoder, text_encoder=reader,
        tokenizer=processor.tokenizer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def qwen3(hidden: int, layers: int):
    """(a language model of Qwen3's kind, its tokenizer with a chat template)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from grpo_mm.pipelines.zoo.byte_pieces import byte_tokenizer
    from grpo_mm.pipelines.zoo.vision_language import CHAT_TEMPLATE

    tokenizer = byte_tokenizer(WORDS)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=2048, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config), tokenizer


def build_z_image(folder: Path) -> Path:
    """A ZImagePipeline; text encoder and decoder of other classes than in Qwen-Image."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    torch.manual_seed(0)
    reader, tokenizer = qwen3(16, layers=3)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[2, 2, 4], axes_lens=[256, 64, 64],
    )  # fmt: skip
    randomise(transformer)
    ZImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0), vae=vae(4, scaling=0.3611, shift=0.1159),
        text_encoder=reader.model, tokenizer=tokenizer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build_flux2_klein(folder: Path, *, is_distilled: bool = False) -> Path:
    """A Flux2KleinPipeline; its text states are those of layers 9, 18 and 27."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    torch.manual_seed(0)
    reader, tokenizer = qwen3(8, layers=28)
    Flux2KleinPipeline(
        transformer=_flux2_transformer(joint=24, guidance=False),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=_flux2_vae(),
        text_encoder=reader, tokenizer=tokenizer, is_distilled=is_distilled,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build_flux2(folder: Path) -> Path:
    """A Flux2Pipeline (the dev format); its text states are those of layers 10, 20 and 30 of a Mistral3 that also sees pictures."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralImageProcessor,
        PixtralProcessor,
        PixtralVisionConfig,
    )

    from grpo_mm.pipelines.zoo.byte_pieces import byte_tokenizer
    from grpo_mm.pipelines.zoo.vision_language import CHAT_TEMPLATE

    torch.manual_seed(0)
    tokenizer = byte_tokenizer([*WORDS, *SYSTEM_MESSAGE.split()])
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(), tokenizer=tokenizer, patch_size=14, chat_template=CHAT_TEMPLATE
    )
    text = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=31, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=2048, initializer_range=0.2, sliding_window=None,
    )  # fmt: skip
    vision = PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        head_dim=8,
    )
    reader = Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config=text, vision_config=vision, image_token_index=tokenizer.convert_tokens_to_ids("[IMG]")
        )
    )
    Flux2Pipeline(
        transformer=_flux2_transformer(joint=24, guidance=True),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=_flux2_vae(),
        text_encoder=reader, tokenizer=processor,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _flux2_transformer(*, joint: int, guidance: bool):
    from diffusers import Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=joint, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=guidance,
    )  # fmt: skip
    randomise(transformer)
    return transformer


def _flux2_vae():
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=16,
    )  # fmt: skip
    vae.bn.running_mean.normal_(0, 0.5)
    vae.bn.running_var.uniform_(0.5, 3.0)
    return vae


BUILDERS = {"qwen_image": build_qwen_image, "z_image": build_z_image, "flux2_klein": build_flux2_klein,
            "flux2": build_flux2} | NEWER  # fmt: skip
"""Kind of flow model -> what makes a checkpoint of it."""
