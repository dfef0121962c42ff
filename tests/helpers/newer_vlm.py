"""Random checkpoints of the newer vision-language families, made of their real classes with the zoo's tokenizer."""

from __future__ import annotations

from typing import Any

SIZE = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 256}
"""Pixels of a picture, or of all frames of a clip: those of the tests stay as they come."""
VISION = dict(
    depth=3, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64, num_position_embeddings=64,
    initializer_range=0.2, patch_size=14,
)  # fmt: skip


def qwen3_vl_moe(text: dict[str, Any], tokens: dict[str, Any], processor: Any) -> tuple[Any, Any]:
    """Three layers: the middle one has a plain MLP, as `mlp_only_layers` allows; four experts elsewhere, two a token."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text["rope_parameters"] |= {"mrope_interleaved": True}
    text |= {
        "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "mlp_only_layers": [1],
        "decoder_sparse_step": 1,
    }  # fmt: skip
    vision = VISION | {"deepstack_visual_indexes": [0, 1]}
    settings = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **tokens)
    return Qwen3VLMoeForConditionalGeneration(settings), qwen3_processor(processor)


def qwen3_processor(processor: Any) -> Any:
    """As Qwen3-VL has it: a time before each frame of a clip."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=SIZE, patch_size=14),
        video_processor=Qwen3VLVideoProcessor(size=SIZE, patch_size=14),
        tokenizer=processor.tokenizer,
        chat_template=processor.chat_template,
    )


MAKERS = {"qwen3_vl_moe": qwen3_vl_moe}
"""Each takes the settings of a text model, the ids of its tokens and the zoo's processor; gives model and processor."""
