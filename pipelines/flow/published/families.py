"""Published sizes of the families whose text encoder is a language model, by hub name; networks without numbers.

Tokenizers are stand-ins that read bytes: texts are counted as long as `text_length` lets them be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from grpo_mm.pipelines.zoo.byte_pieces import byte_tokenizer
from grpo_mm.pipelines.zoo.random_weights import vision_language_config
from grpo_mm.pipelines.zoo.vision_language import CHAT_TEMPLATE

QWEN3_4B = dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36)
QWEN3_8B = dict(hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36)
KLEIN_4B = dict(num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=3 * 2560)
KLEIN_9B = dict(num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=3 * 4096)


def _qwen_image(pipeline: str = "QwenImagePipeline", **transformer: Any) -> Any:
    """20.43 · 10⁹ weights in the transformer, 8.29 · 10⁹ in the text encoder."""
    import diffusers
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
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
                joint_attention_dim=3584, axes_dims_rope=(16, 56, 56), **transformer,
            ),
            "vae": AutoencoderKLQwenImage(),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        }  # fmt: skip
    sees = {} if pipeline == "QwenImagePipeline" else {"processor": processor}
    return getattr(diffusers, pipeline)(scheduler=scheduler, tokenizer=processor.tokenizer, **parts, **sees)


def _z_image() -> Any:
    """6.15 · 10⁹ weights in the transformer, 4.02 · 10⁹ in the text encoder."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    with torch.device("meta"):
        parts = {
            "transformer": ZImageTransformer2DModel(),
            "vae": AutoencoderKL(
                latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
            ),
            "text_encoder": _qwen3(QWEN3_4B),
        }  # fmt: skip
    return ZImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), tokenizer=_tokenizer(), **parts)


def _klein(transformer: Mapping[str, Any], reader: Mapping[str, Any], *, is_distilled: bool) -> Any:
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    with torch.device("meta"):
        parts = {
            "transformer": Flux2Transformer2DModel(**transformer, guidance_embeds=False),
            "vae": AutoencoderKLFlux2(),
            "text_encoder": _qwen3(reader),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return Flux2KleinPipeline(scheduler=scheduler, tokenizer=_tokenizer(), is_distilled=is_distilled, **parts)


def _flux2() -> Any:
    """32.2 · 10⁹ weights in the transformer, 24.0 · 10⁹ in the text encoder."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Pipeline, Flux2Transformer2DModel
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralImageProcessor,
        PixtralProcessor,
        PixtralVisionConfig,
    )

    text = MistralConfig(
        vocab_size=131_072, hidden_size=5120, intermediate_size=32_768, num_hidden_layers=40, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, sliding_window=None, max_position_embeddings=131_072,
    )  # fmt: skip
    tokenizer = _tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(), tokenizer=tokenizer, chat_template=CHAT_TEMPLATE
    )
    with torch.device("meta"):
        parts = {
            "transformer": Flux2Transformer2DModel(),
            "vae": AutoencoderKLFlux2(),
            "text_encoder": Mistral3ForConditionalGeneration(
                Mistral3Config(text_config=text, vision_config=PixtralVisionConfig())
            ),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return Flux2Pipeline(scheduler=scheduler, tokenizer=processor, **parts)


def _qwen3(size: Mapping[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=151_936, num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960,
        tie_word_embeddings=size["hidden_size"] < 4096, **size,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def _tokenizer() -> Any:
    tokenizer = byte_tokenizer(["a", "photo"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


NAMED: dict[str, Callable[[], Any]] = {
    "Qwen/Qwen-Image": _qwen_image,
    "Qwen/Qwen-Image-2512": _qwen_image,
    "Qwen/Qwen-Image-Edit": partial(_qwen_image, "QwenImageEditPipeline"),
    "Qwen/Qwen-Image-Edit-2509": partial(_qwen_image, "QwenImageEditPlusPipeline"),
    "Qwen/Qwen-Image-Edit-2511": partial(_qwen_image, "QwenImageEditPlusPipeline", zero_cond_t=True),
    "Tongyi-MAI/Z-Image": _z_image,
    "Tongyi-MAI/Z-Image-Turbo": _z_image,
    "black-forest-labs/FLUX.2-dev": _flux2,
    "black-forest-labs/FLUX.2-klein-4B": partial(_klein, KLEIN_4B, QWEN3_4B, is_distilled=True),
    "black-forest-labs/FLUX.2-klein-base-4B": partial(_klein, KLEIN_4B, QWEN3_4B, is_distilled=False),
    "black-forest-labs/FLUX.2-klein-9B": partial(_klein, KLEIN_9B, QWEN3_8B, is_distilled=True),
    "black-forest-labs/FLUX.2-klein-base-9B": partial(_klein, KLEIN_9B, QWEN3_8B, is_distilled=False),
}
