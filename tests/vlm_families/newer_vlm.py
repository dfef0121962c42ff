"""Random checkpoints of the newer vision-language families, made of their real classes with the zoo's tokenizer."""

from __future__ import annotations

import tempfile
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


def qwen3_5(text: dict[str, Any], tokens: dict[str, Any], processor: Any) -> tuple[Any, Any]:
    """A layer with full attention between two with linear attention, as many heads of values as two of keys."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text["rope_parameters"] |= {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "partial_rotary_factor": 0.5}
    text |= {
        "head_dim": 32, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    }  # fmt: skip
    settings = Qwen3_5Config(text_config=text, vision_config=VISION, **tokens)
    return Qwen3_5ForConditionalGeneration(settings), qwen3_processor(processor)


def qwen3_processor(processor: Any) -> Any:
    """As Qwen3-VL has it: a time before each frame of a clip."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=SIZE, patch_size=14),
        video_processor=Qwen3VLVideoProcessor(size=SIZE, patch_size=14),
        tokenizer=processor.tokenizer,
        chat_template=processor.chat_template,
    )


def qwen3_5_moe(text: dict[str, Any], tokens: dict[str, Any], processor: Any) -> tuple[Any, Any]:
    """The same with experts in all layers, one of them shared by all tokens."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text["rope_parameters"] |= {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "partial_rotary_factor": 0.5}
    text.pop("intermediate_size")
    text |= {
        "head_dim": 32, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 32,
    }  # fmt: skip
    settings = Qwen3_5MoeConfig(text_config=text, vision_config=VISION, **tokens)
    return Qwen3_5MoeForConditionalGeneration(settings), qwen3_processor(processor)


def internvl(text: dict[str, Any], tokens: dict[str, Any], processor: Any) -> tuple[Any, Any]:
    """Tiles of 56 × 56 pixels, 4 visual tokens each, and a Qwen2 as language model; a picture is one to three tiles."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    names = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    template = processor.chat_template.replace(PICTURE, "<IMG_CONTEXT>\n").replace(VIDEO, "<video>\n")
    tokenizer = with_tokens(processor.tokenizer, names)
    text |= {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e3},
    }
    vision = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=[56, 56],
        patch_size=[14, 14], initializer_range=0.2, norm_type="layer_norm",
    )  # fmt: skip
    settings = InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=tokenizer.context_image_token_id, image_seq_length=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    size = {"height": 56, "width": 56}
    return InternVLForConditionalGeneration(settings), InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, min_patches=1, max_patches=2, crop_to_patches=True),
        video_processor=InternVLVideoProcessor(size=size), tokenizer=tokenizer, chat_template=template, image_seq_length=4,
    )  # fmt: skip


def glm4v(text: dict[str, Any], tokens: dict[str, Any], processor: Any) -> tuple[Any, Any]:
    """One gate and up projection together, four norms a layer."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    tokens, processor = _glm(text, processor)
    vision = GLM_VISION | {"num_heads": 2}
    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=vision, **tokens)), processor


def glm46v(text: dict[str, Any], tokens: dict[str, Any], processor: Any) -> tuple[Any, Any]:
    """GLM-4.1V's networks; the time after a frame of a video has a tenth of a second."""
    from transformers import (
        Glm46VConfig,
        Glm46VForConditionalGeneration,
        Glm46VImageProcessor,
        Glm46VProcessor,
        Glm46VVideoProcessor,
    )

    tokens, other = _glm(text, processor)
    vision = GLM_VISION | {"num_heads": 2, "model_type": "glm4v_vision"}
    settings = Glm46VConfig(text_config=text | {"model_type": "glm4v_text"}, vision_config=vision, **tokens)
    return Glm46VForConditionalGeneration(settings), Glm46VProcessor(
        image_processor=Glm46VImageProcessor(size=SIZE), video_processor=Glm46VVideoProcessor(size=SIZE),
        tokenizer=other.tokenizer, chat_template=other.chat_template,
    )  # fmt: skip


def glm4v_moe(text: dict[str, Any], tokens: dict[str, Any], processor: Any) -> tuple[Any, Any]:
    """The first layer has a plain MLP; in the others experts, and one that all tokens share."""
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    tokens, processor = _glm(text, processor)
    text |= {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "head_dim": 32,
    }  # fmt: skip
    vision = GLM_VISION | {"num_heads": 2}
    return Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(text_config=text, vision_config=vision, **tokens)), processor


GLM_VISION = dict(
    depth=2, hidden_size=32, intermediate_size=48, out_hidden_size=64, image_size=112, patch_size=14, initializer_range=0.2,
)  # fmt: skip


def _glm(text: dict[str, Any], processor: Any) -> tuple[dict[str, Any], Any]:
    """(ids of tokens, processor); the text model is told of the tokenizer."""
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    edges = {
        f"{kind}_{end}": f"<|{word}_of_{kind}|>"
        for kind in ("image", "video")
        for end, word in (("start", "begin"), ("end", "end"))
    }
    tokenizer = with_tokens(processor.tokenizer, names | {f"{name}_token": token for name, token in edges.items()})
    template = processor.chat_template.replace(PICTURE, "<|begin_of_image|><|image|><|end_of_image|>")
    template = template.replace(VIDEO, "<|begin_of_video|><|video|><|end_of_video|>")
    text["rope_parameters"] |= {"mrope_section": [4, 2, 2], "partial_rotary_factor": 0.5}
    text |= {"vocab_size": len(tokenizer)}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    ids |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in edges.items()}
    made = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=SIZE), video_processor=Glm4vVideoProcessor(size=SIZE), tokenizer=tokenizer,
        chat_template=template,
    )  # fmt: skip
    return ids | {"tie_word_embeddings": True}, made


PICTURE, VIDEO = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
"""As the zoo's template has them."""


def with_tokens(tokenizer: Any, names: dict[str, str]) -> Any:
    """The tokenizer with special tokens under names of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return type(tokenizer).from_pretrained(folder, extra_special_tokens=names)


MAKERS = {
    "qwen3_vl_moe": qwen3_vl_moe, "qwen3_5": qwen3_5, "qwen3_5_moe": qwen3_5_moe, "internvl": internvl, "glm4v": glm4v,
    "glm46v": glm46v, "glm4v_moe": glm4v_moe,
}  # fmt: skip
"""Each takes the settings of a text model, the ids of its tokens and the zoo's processor; gives model and processor."""
