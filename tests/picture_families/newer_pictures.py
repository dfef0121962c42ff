"""Tiny random checkpoints of Sana and Qwen-Image 2.1, made of the real classes."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import WORDS, randomise

FLOW_SIGMAS = dict(
    use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, algorithm_type="dpmsolver++", solver_order=2,
)  # fmt: skip


def gemma_tokenizer():
    """A `GemmaTokenizer` of letters, and of words with a blank before them."""
    from transformers import GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges=[])


def build_sana(folder: Path, *, euler: bool = False, qk_norm: str | None = "rms_norm_across_heads") -> Path:
    """A SanaPipeline; `qk_norm` as in Sana-1.5 (Sana has none), `euler`: the other scheduler that its checkpoints come with."""
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    tokenizer = gemma_tokenizer()
    reader = Gemma2Model(Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=4096, initializer_range=0.2,
    ))  # fmt: skip
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16, sample_size=32, patch_size=1, qk_norm=qk_norm,
    )  # fmt: skip
    randomise(transformer)
    deep = dict(
        encoder_block_types="ResBlock", decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",),
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4, encoder_qkv_multiscales=((),) * 4, decoder_qkv_multiscales=((), (), (), (5,)),
    )  # fmt: skip
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.41407, upsample_block_type="interpolate",
                        downsample_block_type="conv", **deep)  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0) if euler else DPMSolverMultistepScheduler(**FLOW_SIGMAS)
    SanaPipeline(
        tokenizer=tokenizer, text_encoder=reader, vae=vae, transformer=transformer, scheduler=scheduler
    ).save_pretrained(folder)
    return folder


def build_qwen_image21(folder: Path, *, sample_sigmas: list[float] | None = None) -> Path:
    """A QwenImage21Pipeline; its pictures have an opaque channel, and its reader is a Qwen3-VL."""
    from diffusers import (
        AutoencoderKLQwenImage21,
        FlowMatchEulerDiscreteScheduler,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    from grpo_mm.pipelines.zoo.byte_pieces import byte_tokenizer
    from grpo_mm.pipelines.zoo.vision_language import CHAT_TEMPLATE

    torch.manual_seed(0)
    tokenizer = byte_tokenizer([*WORDS, "Comprehend", "and", "analyze", "the", "provided", "prompt.", "system", "user"])
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name.removesuffix('_token_id').replace('image', 'image_pad').replace('video', 'video_pad')}|>")
           for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")}  # fmt: skip
    text = dict(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=2048, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(
        depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=16, num_position_embeddings=64,
        deepstack_visual_indexes=[0], patch_size=14,
    )  # fmt: skip
    reader = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=14), video_processor=Qwen3VLVideoProcessor(patch_size=14),
        tokenizer=tokenizer, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    transformer = QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, context_in_dim=16,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    randomise(transformer)
    vae = AutoencoderKLQwenImage21(
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[-0.7, 0.1, 0.9, -0.3], latents_std=[2.8, 1.4, 2.3, 1.2],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
        shift_terminal=0.02,
    )  # fmt: skip
    QwenImage21Pipeline(
        scheduler=scheduler, vae=vae, text_encoder=reader, processor=processor, transformer=transformer,
        sample_sigmas=sample_sigmas,
    ).save_pretrained(folder)  # fmt: skip
    return folder


NEWER = {"qwen_image21": build_qwen_image21, "sana": build_sana}
"""Kind of flow model -> what makes a checkpoint of it."""
