"""Sizes of released checkpoints by hub name, so that memory can be counted where none is at hand.

From the models' published configurations; the test compares the number of weights that follow with the published ones.
"""

from __future__ import annotations

from typing import Any

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.pipelines.vlm.models.families import family_of, resolve
from grpo_mm.pipelines.vlm.models.known_newer import NEWER
from grpo_mm.pipelines.weight_files import on_this_disk
from grpo_mm.pipelines.zoo.random_weights import VISION_LANGUAGE, vision_language_config

RANDOM = "random:"
_TEXT = {
    "qwen2_vl/2b": (151_936, 1536, 8960, 28, 12, 2, True),
    "qwen2_vl/7b": (152_064, 3584, 18_944, 28, 28, 4, False),
    "qwen2_vl/72b": (152_064, 8192, 29_568, 80, 64, 8, False),
    "qwen2_5_vl/32b": (152_064, 5120, 27_648, 64, 40, 8, False),
    "qwen2_5_vl/72b": (152_064, 8192, 29_568, 80, 64, 8, False),
    "qwen3_vl/2b": (151_936, 2048, 6144, 28, 16, 8, True),
    "qwen3_vl/4b": (151_936, 2560, 9728, 36, 32, 8, True),
    "qwen3_vl/8b": (151_936, 4096, 12_288, 36, 32, 8, False),
    "qwen3_vl/32b": (151_936, 5120, 25_600, 64, 64, 8, False),
}
"""Vocabulary, width, width within, layers, heads, heads of keys, whether the head is the embedding."""
_TOWER_QWEN3 = {"2b": (24, 1024, 4096, [5, 11, 17]), "4b": (24, 1024, 4096, [5, 11, 17])}
HUB = {
    **{f"Qwen/Qwen2-VL-{size.upper()}": f"qwen2_vl/{size}" for size in ("2b", "7b", "72b")},
    **{f"Qwen/Qwen2.5-VL-{size.upper()}": f"qwen2_5_vl/{size}" for size in ("3b", "7b", "32b", "72b")},
    **{f"Qwen/Qwen3-VL-{size.upper()}": f"qwen3_vl/{size}" for size in ("2b", "4b", "8b", "32b")},
}


def known_config(path: str) -> tuple[Any, str]:
    """(the model's configuration, where its figures come from), of a folder, a hub name or `random:` weights.

    Raises:
        ConfigError: it is not on this disk and no size that is known here.
    """
    from transformers import AutoConfig

    if path.startswith(RANDOM):
        return vision_language_config(path.removeprefix(RANDOM))[0], f"the size {shown(path)}"
    folder = on_this_disk(resolve(path), file="config.json")
    if folder is not None:
        config = AutoConfig.from_pretrained(folder)
        family_of(config.model_type, path=path)
        return config, f"{shown(path)}: config.json on this disk"
    bare = path.removesuffix("-Instruct").removesuffix("-Thinking")
    if bare in NEWER:
        return NEWER[bare](), f"{shown(path)}: the published configuration, from the table of known sizes"
    if bare not in HUB:
        raise ConfigError(
            f"{shown(path)} is neither on this disk nor a size that is known here ({', '.join([*HUB, *NEWER])}): download its config.json "
            f"(hf download {shown(path)} config.json), or set policy.path to a folder."
        )
    return _config(HUB[bare]), f"{shown(path)}: the published configuration, from the table of known sizes"


def _config(size: str) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

    family, _, letter = size.partition("/")
    if size in VISION_LANGUAGE:
        text, vision = VISION_LANGUAGE[size]["text"], VISION_LANGUAGE[size]["vision"]
        tied = VISION_LANGUAGE[size]["tie_word_embeddings"]
    else:
        names = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        )
        *numbers, tied = _TEXT[size]
        text = dict(zip(names, numbers, strict=True))
        vision = VISION_LANGUAGE["qwen2_5_vl/7b"]["vision"] | {"intermediate_size": 3456}
    text |= {"max_position_embeddings": 128_000}
    sections = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    if family == "qwen2_vl":
        tower = {"depth": 32, "embed_dim": 1280, "hidden_size": text["hidden_size"], "num_heads": 16, "mlp_ratio": 4}
        return Qwen2VLConfig(
            text_config=text | {"rope_parameters": sections}, vision_config=tower, tie_word_embeddings=tied
        )
    if family == "qwen2_5_vl":
        tower = vision | {"out_hidden_size": text["hidden_size"]}
        return Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": sections}, vision_config=tower, tie_word_embeddings=tied
        )
    depth, width, within, deep = _TOWER_QWEN3.get(letter, (27, 1152, 4304, [8, 16, 24]))
    tower = {
        "depth": depth, "hidden_size": width, "intermediate_size": within, "num_heads": 16,
        "out_hidden_size": text["hidden_size"], "deepstack_visual_indexes": deep,
    }  # fmt: skip
    sections |= {"mrope_section": [24, 20, 20], "rope_theta": 5e6, "mrope_interleaved": True}
    text |= {"head_dim": 128, "rope_parameters": sections, "tie_word_embeddings": tied}
    return Qwen3VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=tied)
