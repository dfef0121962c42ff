"""Sizes of the newer families by hub name, from the models' published configurations; what is not said is the class's default."""

from __future__ import annotations

from typing import Any

DELTA = {
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
"""Of linear attention."""


def _qwen(theta: float, sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": sections, "mrope_interleaved": True, **more}


def _glm() -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5}


def qwen3_vl_moe(hidden: int, layers: int, heads: int, inside: int) -> Any:
    from transformers import Qwen3VLMoeConfig

    text = {
        "vocab_size": 151_936, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": inside,
        "max_position_embeddings": 128_000, "rope_parameters": _qwen(5e6, [24, 20, 20]),
    }  # fmt: skip
    return Qwen3VLMoeConfig(text_config=text, vision_config={"out_hidden_size": hidden}, tie_word_embeddings=False)


def qwen3_5_9b() -> Any:
    from transformers import Qwen3_5Config

    text = {"rope_parameters": _qwen(1e7, [11, 11, 10], partial_rotary_factor=0.25), "max_position_embeddings": 262_144}
    return Qwen3_5Config(text_config=text | DELTA, vision_config={"out_hidden_size": 4096})


def qwen3_5_35b_a3b() -> Any:
    from transformers import Qwen3_5MoeConfig

    text = {
        "vocab_size": 248_320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "max_position_embeddings": 262_144,
        "rope_parameters": _qwen(1e7, [11, 11, 10], partial_rotary_factor=0.25),
    }  # fmt: skip
    return Qwen3_5MoeConfig(text_config=text | DELTA, vision_config={"out_hidden_size": 2048})


def internvl(
    text: str, hidden: int, inside: int, layers: int, heads: int, keys: int, vocabulary: int, tied: bool
) -> Any:
    """text: model_type of the language model."""
    from transformers import InternVLConfig

    settings = {
        "model_type": text, "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inside,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys, "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, **({"head_dim": 128} if text == "qwen3" else {}),
    }  # fmt: skip
    return InternVLConfig(text_config=settings, vision_config={}, tie_word_embeddings=tied)


def glm4v() -> Any:
    from transformers import Glm4vConfig

    text = {"rope_parameters": _glm(), "max_position_embeddings": 65_536}
    return Glm4vConfig(text_config=text, vision_config={}, tie_word_embeddings=False)


def glm4v_moe() -> Any:
    from transformers import Glm4vMoeConfig

    text = {"vocab_size": 151_552, "head_dim": 128, "rope_parameters": _glm()}
    return Glm4vMoeConfig(text_config=text, vision_config={"intermediate_size": 10_944}, tie_word_embeddings=False)


NEWER = {
    "Qwen/Qwen3-VL-30B-A3B": lambda: qwen3_vl_moe(2048, 48, 32, 768),
    "Qwen/Qwen3-VL-235B-A22B": lambda: qwen3_vl_moe(4096, 94, 64, 1536),
    "Qwen/Qwen3.5-9B": qwen3_5_9b,
    "Qwen/Qwen3.5-35B-A3B": qwen3_5_35b_a3b,
    "OpenGVLab/InternVL3-8B-hf": lambda: internvl("qwen2", 3584, 18_944, 28, 28, 4, 151_674, False),
    "OpenGVLab/InternVL3_5-2B-HF": lambda: internvl("qwen3", 2048, 6144, 28, 16, 8, 151_936, False),
    "OpenGVLab/InternVL3_5-8B-HF": lambda: internvl("qwen3", 4096, 12_288, 36, 32, 8, 151_936, False),
    "zai-org/GLM-4.1V-9B": glm4v,
    "zai-org/GLM-4.5V": glm4v_moe,
}
"""Hub name without -Instruct or -Thinking → its configuration."""
