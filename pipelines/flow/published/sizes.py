"""Published sizes of Sana and Qwen-Image 2.1, by hub name; networks without numbers.

Tokenizers are stand-ins, see `families`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from grpo_mm.pipelines.zoo.byte_pieces import byte_tokenizer
from grpo_mm.pipelines.zoo.vision_language import CHAT_TEMPLATE

WIDE = dict(
    num_attention_heads=70, num_cross_attention_heads=20, cross_attention_head_dim=112, cross_attention_dim=2240
)
NARROW = dict(
    num_attention_heads=36, num_cross_attention_heads=16, cross_attention_head_dim=72, cross_attention_dim=1152
)
NEWER = dict(qk_norm="rms_norm_across_heads")


def _sana(*, picture: int = 1024, **size: Any) -> Any:
    """Beside the transformer, 2.61 · 10⁹ weights in the text encoder and 0.31 · 10⁹ in the autoencoder."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    deep = dict(
        block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3, block_out_channels=(128, 256, 512, 512, 1024, 1024),
        qkv_multiscales=((),) * 3 + ((5,),) * 3,
    )  # fmt: skip
    with torch.device("meta"):
        parts = {
            "transformer": SanaTransformer2DModel(attention_head_dim=32, sample_size=picture // 32, **size),
            "vae": AutoencoderDC(
                **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in deep.items()},
                encoder_layers_per_block=(2, 2, 2, 3, 3, 3), decoder_layers_per_block=(3,) * 6, scaling_factor=0.41407,
                upsample_block_type="interpolate", downsample_block_type="conv",
            ),
            "text_encoder": Gemma2Model(Gemma2Config()),
        }  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, algorithm_type="dpmsolver++"
    )
    tokenizer = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    return SanaPipeline(tokenizer=tokenizer, scheduler=scheduler, **parts)


def _qwen_image21() -> Any:
    """7.1 · 10⁹ weights in the transformer; its text encoder is Qwen3-VL-8B."""
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

    text = dict(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    )  # fmt: skip
    vision = dict(
        depth=27, hidden_size=1152, num_heads=16, intermediate_size=4304, out_hidden_size=4096,
        num_position_embeddings=2304, deepstack_visual_indexes=[8, 16, 24],
    )  # fmt: skip
    tokenizer = byte_tokenizer(["a", "photo"])
    tokenizer.chat_template = CHAT_TEMPLATE
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(), video_processor=Qwen3VLVideoProcessor(), tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    with torch.device("meta"):
        parts = {
            "transformer": QwenImage21Transformer2DModel(),
            "vae": AutoencoderKLQwenImage21(),
            "text_encoder": Qwen3VLForConditionalGeneration(
                Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
            ),
        }
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), processor=processor, **parts
    )


_OWNER = "Efficient-Large-Model/"
NAMED: dict[str, Callable[[], Any]] = {
    "Qwen/Qwen-Image-2.1": _qwen_image21,
    f"{_OWNER}Sana_600M_512px_diffusers": partial(_sana, num_layers=28, picture=512, **NARROW),
    f"{_OWNER}Sana_600M_1024px_diffusers": partial(_sana, num_layers=28, **NARROW),
    f"{_OWNER}Sana_1600M_512px_diffusers": partial(_sana, num_layers=20, picture=512, **WIDE),
    f"{_OWNER}Sana_1600M_1024px_diffusers": partial(_sana, num_layers=20, **WIDE),
    f"{_OWNER}Sana_1600M_1024px_BF16_diffusers": partial(_sana, num_layers=20, **WIDE),
    f"{_OWNER}SANA1.5_1.6B_1024px_diffusers": partial(_sana, num_layers=20, **WIDE, **NEWER),
    f"{_OWNER}SANA1.5_4.8B_1024px_diffusers": partial(_sana, num_layers=60, **WIDE, **NEWER),
}
